//! Random images, texts and labels.

use super::options::Args;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Images, and a label for each.
pub(super) fn images(args: &Args, channels: usize, classes: usize) -> Result<(Tensor, Tensor)> {
    let mut rng = rng(args);
    let shape = [args.batch, channels, args.size, args.size];
    let what = || format!("--batch {} with --size {}", args.batch, args.size);
    let images = numbers(args, &shape, &mut rng).with_context(what)?;
    Ok((images, labels(args, classes, &mut rng)?))
}

/// Rows of numbers in −2..2, and of others.
pub(super) fn rows(args: &Args, width: usize) -> Result<(Tensor, Tensor)> {
    let mut rng = rng(args);
    let mut rows = || {
        let rows = numbers(args, &[args.batch, width], &mut rng);
        rows.with_context(|| format!("--batch {}", args.batch))
    };
    Ok((rows()?, rows()?))
}

/// Tokens, (batch, time), and a label for each text.
pub(super) fn texts(args: &Args, vocabulary: usize, classes: usize) -> Result<(Tensor, Tensor)> {
    let mut rng = rng(args);
    let ids = Tensor::new(tokens(args, vocabulary, &mut rng), &Device::Cpu)?;
    Ok((ids, labels(args, classes, &mut rng)?))
}

/// Tokens, (batch, time), and for each the next one; −100 after the last.
pub(super) fn text(args: &Args, vocabulary: usize) -> Result<(Tensor, Tensor)> {
    let rows = tokens(args, vocabulary, &mut rng(args));
    let next = |row: &Vec<u32>| -> Vec<i64> {
        let shifted = row[1..].iter().map(|&id| i64::from(id));
        shifted.chain([-100]).collect()
    };
    let next: Vec<_> = rows.iter().map(next).collect();
    Ok((
        Tensor::new(rows, &Device::Cpu)?,
        Tensor::new(next, &Device::Cpu)?,
    ))
}

fn rng(args: &Args) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(args.seed)
}

fn numbers(args: &Args, shape: &[usize], rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let count = shape.iter().product();
    let mut values = Vec::<f32>::new();
    values.try_reserve_exact(count)?;
    values.extend((0..count).map(|_| rng.random::<f32>() * 4.0 - 2.0));
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(args.dtype.dtype())?)
}

fn labels(args: &Args, classes: usize, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let labels = (0..args.batch).map(|_| rng.random_range(0..classes.max(1) as u32));
    Ok(Tensor::new(labels.collect::<Vec<_>>(), &Device::Cpu)?)
}

fn tokens(args: &Args, vocabulary: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<u32>> {
    let mut row = |_| -> Vec<u32> {
        let ids = (0..args.seq).map(|_| rng.random_range(0..vocabulary as u32));
        ids.collect()
    };
    (0..args.batch).map(&mut row).collect()
}

//! ConvNeXt on random images.

use super::{Args, Bench, Mode, Recompute, Written};
use crate::{rank, user_convnext};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::loss::cross_entropy;
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::models::{self, Architecture, Options, Weights};
use lora::{Lora, LoraModel, LoraModule};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

pub(super) fn run(args: &Args) -> Result<()> {
    match args.written {
        Written::Library => bench::<ConvNext>(args)?.run(args, "library"),
        Written::User => bench::<user_convnext::ConvNext>(args)?.run(args, "user"),
    }
}

fn bench<M>(args: &Args) -> Result<Bench<M>>
where
    M: Architecture<Config = ConvNextConfig>,
    Lora<M>: Module,
{
    let weights = Weights::Random(args.seed);
    let created = models::create::<M>(&args.model, weights, &Options::new())?;
    let config = created.config;
    if args.mode == Mode::Lora {
        rank::check::<M>(&config, &args.config())?;
    }
    let model = convert(created.model, args, config.head_norm_first)?;
    let model = model.to_dtype(args.dtype.dtype())?;
    let (images, labels) = data(args, config.in_chans, config.num_classes)?;
    let size = args.size;
    let logits = move |model: &Lora<M>| {
        let logits = model.forward(&images);
        logits.with_context(|| format!("--size {size} does not suit the model"))
    };
    let output = logits.clone();
    Ok(Bench {
        model,
        loss: Box::new(move |model| {
            let logits = logits(model)?.to_dtype(DType::F32)?;
            Ok(cross_entropy(&logits, &labels)?)
        }),
        output: Box::new(output),
    })
}

fn convert<M: LoraModel>(base: M, args: &Args, norm_pre: bool) -> Result<Lora<M>> {
    let config = match args.recompute {
        Recompute::None => args.config(),
        Recompute::Mlp => args.config().recompute(["mlp"]),
        Recompute::Block => args.config().recompute(r"stages\.\d+\.blocks\.\d+"),
    };
    Ok(match args.mode {
        Mode::Lora => base.to_lora(&config)?,
        Mode::Full => {
            let mut all = vec!["stem", "stages", "head"];
            all.extend(norm_pre.then_some("norm_pre"));
            base.to_lora(&config.modules_to_save(all))?
        }
        Mode::Base => base.to_frozen()?,
    })
}

/// Random images and labels.
fn data(args: &Args, channels: usize, classes: usize) -> Result<(Tensor, Tensor)> {
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let shape = (args.batch, channels, args.size, args.size);
    let count = args.batch * channels * args.size * args.size;
    let mut pixels = Vec::<f32>::new();
    pixels
        .try_reserve_exact(count)
        .with_context(|| format!("--batch {} with --size {}", args.batch, args.size))?;
    pixels.extend((0..count).map(|_| rng.random::<f32>() * 4.0 - 2.0));
    let labels = (0..args.batch).map(|_| rng.random_range(0..classes.max(1) as u32));
    let labels: Vec<u32> = labels.collect();
    let images = Tensor::from_vec(pixels, shape, &Device::Cpu)?.to_dtype(args.dtype.dtype())?;
    Ok((images, Tensor::new(labels, &Device::Cpu)?))
}

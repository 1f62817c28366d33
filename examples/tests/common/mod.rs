//! What the tests share: small images, folders, a small checkpoint.

// Each test binary uses a part of this.
#![allow(dead_code)]

use candle_core::{Device, Result, Tensor};
use image::{Rgb, RgbImage};
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::models::{self, Options, Weights};
use lora_examples::checkpoint::Checkpoint;
use lora_examples::images::Input;
use std::fs;
use std::path::{Path, PathBuf};

/// The error of a result, as the programs print it.
pub fn message<T>(result: anyhow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => format!("{error:#}"),
    }
}

pub fn config() -> ConvNextConfig {
    ConvNextConfig {
        in_chans: 1,
        num_classes: 2,
        depths: [1, 1, 1, 1],
        dims: [4, 4, 8, 8],
        kernel_sizes: [3; 4],
        ls_init_value: Some(0.5),
        ..Default::default()
    }
}

pub fn input() -> Input {
    Input {
        input_size: [1, 32, 32],
        mean: vec![0.5],
        std: vec![0.5],
        label_names: vec!["dark".into(), "light".into()],
    }
}

pub fn model(config: &ConvNextConfig) -> Result<ConvNext> {
    let created = models::build::<ConvNext>(config, Weights::Random(1), &Options::new())?;
    Ok(created.model)
}

/// A checkpoint with random weights that knows the classes `dark` and `light`.
pub fn checkpoint(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("base.safetensors");
    Checkpoint::write(&path, &model(&config())?, &input())?;
    Ok(path)
}

/// A folder of `count` images a class: stripes, upright for every other class, level for the rest.
pub fn folder(dir: &Path, classes: &[&str], count: u8) -> anyhow::Result<PathBuf> {
    let dir = dir.join(classes.join("-"));
    for (class, name) in (1u8..).zip(classes) {
        fs::create_dir_all(dir.join(name))?;
        for index in 0..count {
            let stripes = |x: u32, y: u32| {
                let along = if class % 2 == 1 { x } else { y };
                Rgb([if along / 4 % 2 == 0 {
                    60 * class + index
                } else {
                    0
                }; 3])
            };
            let image = RgbImage::from_fn(20, 16, stripes);
            image.save(dir.join(name).join(format!("{index}.png")))?;
        }
    }
    Ok(dir)
}

/// Every file below a folder with its content.
pub fn snapshot(dir: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(snapshot(&path)?);
        } else {
            let bytes = fs::read(&path)?;
            files.push((path, bytes));
        }
    }
    files.sort();
    Ok(files)
}

/// Values in −1..1 without a pattern.
pub fn fixed(shape: &[usize], seed: usize) -> candle_core::Result<Tensor> {
    let value =
        |i: usize| ((i + 1 + 101 * seed) as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|i| value(i) as f32)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

//! ConvNeXt on random images.

use super::adapt::{self, Parts};
use super::data;
use super::measure::Bench;
use super::options::{Args, Written};
use crate::user_convnext;
use anyhow::{Context, Result};
use candle_core::Module;
use lora::Lora;
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::models::{self, Architecture, Options, Weights};

pub(super) fn run(args: &Args) -> Result<()> {
    match args.written {
        Written::Library => bench::<ConvNext>(args)?.run(args),
        Written::User => bench::<user_convnext::ConvNext>(args)?.run(args),
    }
}

fn bench<M>(args: &Args) -> Result<Bench<M>>
where
    M: Architecture<Config = ConvNextConfig>,
    Lora<M>: Module,
{
    let options = Options::new();
    let named = models::create::<M>(&args.model, Weights::Placeholder, &options);
    let config = named
        .with_context(|| {
            let name = &args.model;
            format!("--model {name} is none of minilm, mlp, smollm2, tinyllama, vit_b16, and no ConvNeXt")
        })?
        .config;
    let (model, config) = adapt::model::<M>(args, &config, &options, parts)?;
    let (images, labels) = data::images(args, config.in_chans, config.num_classes)?;
    let size = args.size;
    Ok(Bench::of_classes(
        model,
        labels,
        move |model: &Lora<M>, _| {
            let logits = model.forward(&images);
            logits.with_context(|| format!("--size {size} does not suit the model"))
        },
    ))
}

fn parts(config: &ConvNextConfig) -> Parts {
    let mut all = vec!["stem", "stages", "head"];
    all.extend(config.head_norm_first.then_some("norm_pre"));
    Parts {
        blocks: Some(r"stages\.\d+\.blocks\.\d+"),
        mlps: Some(r".*\.mlp"),
        all,
    }
}

//! ViT-B/16 on random images, with the names of transformers.

use super::adapt::{self, Parts};
use super::data;
use super::measure::Bench;
use super::options::Args;
use anyhow::{Result, bail};
use candle_core::Module;
use lora::Lora;
use lora::models::Options;
use lora::models::vit::{Vit, VitConfig};

/// The side of a patch.
const PATCH: usize = 16;

pub(super) fn run(args: &Args) -> Result<()> {
    let options = Options::new();
    let (model, config) = adapt::model::<Vit>(args, &config(args)?, &options, parts)?;
    let (images, labels) = data::images(args, config.in_chans, config.labels.len())?;
    let logits = move |model: &Lora<Vit>, _| Ok(model.forward(&images)?);
    Bench::<Vit>::of_classes(model, labels, logits).run(args)
}

fn config(args: &Args) -> Result<VitConfig> {
    let size = args.size;
    if !size.is_multiple_of(PATCH) {
        bail!("--size {size} does not suit the model: its patches are {PATCH} wide");
    }
    let config = serde_json::json!({
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 1000,
        "image_size": size, "patch_size": PATCH,
        "hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout
    });
    Ok(serde_json::from_value(config)?)
}

fn parts(_: &VitConfig) -> Parts {
    Parts {
        blocks: Some(r"vit\.encoder\.layer\.\d+"),
        mlps: None,
        all: vec!["vit", "classifier"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use lora::LoraModule;
    use lora::models::{self, Weights};

    /// The numbers are those of PEFT's twin. Weights that take no memory take no time.
    #[test]
    fn it_trains_what_peft_trains() -> Result<()> {
        for (options, trainable) in [
            ("--rank 4", 147_456),
            ("--rank 4 --recompute block", 147_456),
            ("--rank 4 --targets all-linear", 670_624),
            ("--mode full", 86_567_656),
            ("--mode base", 0),
        ] {
            let args = format!("step_bench --model vit_b16 {options}");
            let args = Args::parse_from(args.split(' '));
            let config = config(&args)?;
            let created = models::build::<Vit>(&config, Weights::Placeholder, &Options::new())?;
            let model = adapt::adapted(&args, created.model, &config, parts(&config))?;
            assert_eq!(model.summary().trainable, trainable, "{options}");
        }
        Ok(())
    }
}

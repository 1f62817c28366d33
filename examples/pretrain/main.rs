//! Trains the base model of the `finetune` example: a small ConvNeXt on MNIST digits.
//!
//! Every module is trained in full: `to_lora` with all of them in `modules_to_save` and no adapter.

use anyhow::Result;
use candle_nn::Module;
use clap::Parser;
use lora::models::convnext::{ConvNext, ConvNextConfig, StemType};
use lora::models::{self, Options, Weights};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_examples::checkpoint::{Checkpoint, Input};
use lora_examples::finetune::bundled;
use lora_examples::images::{Dataset, read_sheets};
use lora_examples::memory::keep_freed;
use lora_examples::training::{Recipe, accuracy, logits, predictions, train};
use std::path::PathBuf;
use std::process::ExitCode;

/// Trains the base model of the finetune example: a small ConvNeXt on MNIST digits.
///
/// The last quarter of each class is held out and only used for the accuracy.
#[derive(Parser)]
#[command(name = "pretrain")]
struct Args {
    /// File to write; its description goes beside it, as .json
    #[arg(long, value_name = "FILE", default_value = "output/digits.safetensors")]
    output: PathBuf,
    /// Passes over the images
    #[arg(long, default_value_t = 15)]
    epochs: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Seed of the weights, the order of the images and their changes
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    keep_freed();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let input = Input {
        input_size: [1, 56, 56],
        mean: vec![0.13],
        std: vec![0.31],
        label_names: (0..10).map(|class| class.to_string()).collect(),
    };
    let config = ConvNextConfig {
        in_chans: 1,
        num_classes: 10,
        depths: [1, 1, 2, 1],
        dims: [16, 32, 64, 128],
        stem_type: StemType::OverlapAct,
        // timm's 1e-6 is for deep models; with it a small one learns slowly at first.
        ls_init_value: Some(0.5),
        ..Default::default()
    };
    let (training, held_out) = read_sheets(&bundled("mnist"), 1, input.size())?.split(0.25);
    println!(
        "{} images to train on, {} held out",
        training.len(),
        held_out.len()
    );

    let fresh = models::build::<ConvNext>(&config, Weights::Random(args.seed), &Options::new())?;
    let everything = LoraConfig::new(1).modules_to_save(["stem", "stages", "head"]);
    let mut model = fresh.model.to_lora(&everything)?;
    println!("{}", model.summary().totals());
    let recipe = Recipe {
        epochs: args.epochs,
        batch: 64,
        lr: args.lr,
        weight_decay: 0.05,
        augment: 0.1,
        seed: args.seed,
    };
    let trained = train(&mut model, &training, &input, &recipe)?;
    // Measured before it is a base model again: candle's depthwise convolution takes its time.
    let score = |data: &Dataset| measure(&model, data, &input);
    println!(
        "accuracy {:.1} % on images trained on, {:.1} % on images held out; {:.0} s",
        100.0 * score(&training)?,
        100.0 * score(&held_out)?,
        trained.total.as_secs_f64()
    );
    if let Some(dir) = args.output.parent() {
        std::fs::create_dir_all(dir)?;
    }
    Checkpoint::write(&args.output, &model.to_base()?, &input)?;
    println!("saved {}", args.output.display());
    Ok(())
}

fn measure<M: Module>(model: &M, data: &Dataset, input: &Input) -> Result<f64> {
    let predictions = predictions(&logits(model, data, input)?)?;
    Ok(accuracy(&predictions, &data.labels))
}

//! Trains the base model of the `finetune` example: a small ConvNeXt on MNIST digits.
//!
//! Every module is trained in full: `to_lora` with all of them in `modules_to_save` and no adapter.

use crate::args::{any_number, count, positive};
use crate::bundled::bundled;
use crate::checkpoint::Checkpoint;
use crate::images::{Dataset, HELD_OUT, Input, read_folder};
use crate::program::say;
use crate::training::{Recipe, accuracy, logits, predictions, train};
use crate::{interrupt, program, threads};
use anyhow::{Context, Result};
use candle_nn::Module;
use clap::Parser;
use lora::models::convnext::{ConvNext, ConvNextConfig, StemType};
use lora::models::{self, Options, Weights};
use lora::{LoraConfig, LoraModel, LoraModule};
use std::path::PathBuf;
use std::process::ExitCode;

/// Side of the model's images.
const SIZE: usize = 56;

/// Trains the base model of the finetune example: a small ConvNeXt on MNIST digits.
///
/// The last quarter of each class is held out and only used for the accuracy.
#[derive(Parser)]
#[command(name = "pretrain", mut_args(any_number))]
struct Args {
    /// Folder of contact sheets or images [default: the MNIST digits of the repository]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// File to write; its description goes beside it, as .json
    #[arg(long, value_name = "FILE", default_value = "output/digits.safetensors")]
    output: PathBuf,
    /// Passes over the images
    #[arg(long, default_value_t = 15, value_parser = count)]
    epochs: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 2e-3, value_parser = positive)]
    lr: f64,
    /// Seed of the weights, the order of the images and their changes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads to compute with [default: RAYON_NUM_THREADS, else 1]. Another number may change the
    /// last bits of the weights
    #[arg(long, value_parser = threads::parse)]
    threads: Option<usize>,
}

/// The program.
pub fn main() -> ExitCode {
    lora::memory::keep();
    let args = Args::parse();
    program::run(|| {
        // With a model this small threads wait for each other longer than they compute.
        threads::set(args.threads, Some(1))?;
        interrupt::catch()?;
        run(&args)
    })
}

fn run(args: &Args) -> Result<()> {
    Checkpoint::check_output(&args.output)?;
    let data = match &args.data {
        Some(data) => data.clone(),
        None => bundled("mnist").context("--data is not given")?,
    };
    let folder = read_folder(&data, SIZE)?;
    for note in &folder.notes {
        say(note)?;
    }
    let (training, held_out) = folder.split(HELD_OUT);
    say(format_args!(
        "{} images to train on, {} held out",
        training.len(),
        held_out.len()
    ))?;
    let channels = training.channels();
    let input = Input {
        input_size: [channels, SIZE, SIZE],
        mean: vec![0.13; channels],
        std: vec![0.31; channels],
        label_names: training.classes.clone(),
    };
    let config = ConvNextConfig {
        in_chans: channels,
        num_classes: training.classes.len(),
        depths: [1, 1, 2, 1],
        dims: [16, 32, 64, 128],
        stem_type: StemType::OverlapAct,
        // timm's 1e-6 is for deep models; with it a small one learns slowly at first.
        ls_init_value: Some(0.5),
        ..Default::default()
    };

    let fresh = models::build::<ConvNext>(&config, Weights::Random(args.seed), &Options::new())?;
    let everything = LoraConfig::new(1).modules_to_save(["stem", "stages", "head"]);
    let mut model = fresh.model.to_lora(&everything)?;
    say(model.summary().totals())?;
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
    let (seen, unseen) = (score(&training)?, score(&held_out)?);
    // Written before anything is printed, which can fail.
    Checkpoint::write(&args.output, &model.to_base()?, &input)?;
    say(format_args!(
        "accuracy {:.1} % on images trained on, {:.1} % on images held out; {:.0} s",
        100.0 * seen,
        100.0 * unseen,
        trained.total.as_secs_f64()
    ))?;
    let output = args.output.display();
    say(format_args!("saved {output}; to tune it:"))?;
    say(format_args!(
        "cargo run --release --example finetune -- --checkpoint {output}"
    ))
}

fn measure<M: Module>(model: &M, data: &Dataset, input: &Input) -> Result<f64> {
    let predictions = predictions(&logits(model, data, input)?)?;
    Ok(accuracy(&predictions, &data.labels))
}

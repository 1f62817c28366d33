//! Prints the layers and parameters of a LoRA model, and how many are trained.
//!
//! ```sh
//! cargo run --release --example summary -- convnext_tiny --rank 2
//! ```

use crate::args::{LoraArgs, any_number, count_or_none, train_in_full};
use crate::{program, rank};
use anyhow::Result;
use clap::Parser;
use lora::LoraModule;
use lora::models::convnext::ConvNext;
use lora::models::vit::Vit;
use lora::models::{self, Architecture, Options, Weights};
use std::process::ExitCode;

/// Prints the layers and parameters of a LoRA model, and how many are trained.
///
/// No weights are needed, and none are allocated.
#[derive(Parser)]
#[command(name = "summary", mut_args(any_number))]
struct Args {
    /// The model's name, for example convnext_tiny; --list shows all
    #[arg(required_unless_present = "list")]
    model: Option<String>,

    /// Print the names of all models
    #[arg(long)]
    list: bool,

    #[command(flatten)]
    lora: LoraArgs,

    /// Train the classifier in full
    #[arg(long, alias = "train-head")]
    train_classifier: bool,

    /// Number of classes in place of the model's; 0 for no classifier
    #[arg(long, value_parser = count_or_none)]
    num_classes: Option<usize>,
}

/// The program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    program::run(|| run(&args))
}

fn run(args: &Args) -> Result<()> {
    let Some(name) = args.model.as_ref().filter(|_| !args.list) else {
        return program::say(models::list().join("\n"));
    };
    let mut options = Options::new();
    options.num_classes = args.num_classes;
    let bare = name.split('.').next().unwrap_or_default();
    let mut vits = Vit::variants().iter();
    match vits.any(|variant| variant.name == bare) {
        true => summary::<Vit>(name, &options, args),
        false => summary::<ConvNext>(name, &options, args),
    }
}

fn summary<M: Architecture>(name: &str, options: &Options, args: &Args) -> Result<()> {
    let created = models::create::<M>(name, Weights::Placeholder, options)?;
    let classifier = args.train_classifier.then_some(M::CLASSIFIER);
    let config = train_in_full(args.lora.config(), classifier);
    rank::check::<M>(&created.config, &config)?;
    program::say(created.model.to_lora(&config)?.summary())
}

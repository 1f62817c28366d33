//! Prints the layers and parameters of a LoRA model, and how many are trained.
//!
//! ```sh
//! cargo run --release --example summary -- convnext_tiny --rank 2
//! ```

use clap::Parser;
use lora::models::convnext::ConvNext;
use lora::models::{self, Options, Weights};
use lora::{LoraConfig, LoraModel, LoraModule, TrainBias};
use std::process::ExitCode;

/// Prints the layers and parameters of a LoRA model, and how many are trained.
///
/// No weights are needed, and none are allocated.
#[derive(Parser)]
struct Args {
    /// The model's name, for example convnext_tiny; --list shows all.
    #[arg(required_unless_present = "list")]
    model: Option<String>,

    /// Print the names of all models.
    #[arg(long)]
    list: bool,

    /// Rank of the updates.
    #[arg(long, default_value_t = 8)]
    rank: usize,

    /// Numerator of the scaling; the rank if not given.
    #[arg(long)]
    alpha: Option<f64>,

    /// A layer to adapt, by the end of its path, in place of the model's own choice. Can be given
    /// several times.
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,

    /// The layers to adapt, as a regular expression for whole paths.
    #[arg(long, value_name = "REGEX", conflicts_with = "target")]
    target_regex: Option<String>,

    /// A layer or module to train in full, by the end of its path. Can be given several times.
    #[arg(long, value_name = "NAME")]
    modules_to_save: Vec<String>,

    /// Train the classifier in full.
    #[arg(long)]
    train_classifier: bool,

    /// Which biases are trained.
    #[arg(long, default_value = "none")]
    bias: Bias,

    /// Number of classes in place of the model's.
    #[arg(long)]
    num_classes: Option<usize>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Bias {
    None,
    LoraOnly,
    All,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> lora::Result<()> {
    let Some(name) = args.model.as_ref().filter(|_| !args.list) else {
        println!("{}", models::list().join("\n"));
        return Ok(());
    };
    let mut options = Options::new();
    options.num_classes = args.num_classes;
    let created = models::create::<ConvNext>(name, Weights::Placeholder, &options)?;
    println!("{}", created.model.to_lora(&config(&args))?.summary());
    Ok(())
}

fn config(args: &Args) -> LoraConfig {
    let mut save = args.modules_to_save.clone();
    if args.train_classifier {
        save.push("head.fc".into());
    }
    let mut config = LoraConfig::new(args.rank)
        .modules_to_save(save)
        .train_bias(match args.bias {
            Bias::None => TrainBias::None,
            Bias::LoraOnly => TrainBias::LoraOnly,
            Bias::All => TrainBias::All,
        });
    if let Some(alpha) = args.alpha {
        config = config.alpha(alpha);
    }
    if let Some(regex) = &args.target_regex {
        config = config.target_modules(regex.as_str());
    } else if !args.target.is_empty() {
        config = config.target_modules(args.target.clone());
    }
    config
}

//! The command line.

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use lora::{LoraConfig, TrainBias};
use std::path::PathBuf;

const BEFORE: &str = "\
Adapts a ConvNeXt image classifier to new images with LoRA.

Without arguments: a model trained on one collection of handwritten digits (MNIST) is adapted to \
another (UCI optical digits), written by other people and scanned at another resolution. Both are \
in the repository. The last quarter of each class is held out and only used for the accuracy.";

const AFTER: &str = "\
What it writes into --output, replacing what an earlier run wrote there:
  adapter/             the adapter in PEFT's format
  merged.safetensors   the base model with the adapter merged, and merged.json, its description
  predictions.png      some held-out images with the labels before and after
If anything fails, an earlier run's files stay as they are.

Your own images:  cargo run --release --example finetune -- --data photos --output output/photos
where photos/cat/1.jpg, photos/cat/2.jpg, photos/dog/1.jpg, .. are PNG or JPEG files, one subfolder \
a class. They are cut to their middle square and brought to the model's size. If the model does not \
know the classes, it gets a fresh classifier, which is trained in full.

Another model:  --checkpoint model.safetensors, a ConvNeXt with timm's parameter names, and beside \
it model.json or timm's config.json.";

/// What to do; `--help` tells the same.
#[derive(Clone, Debug, Parser)]
#[command(name = "finetune", about = "Adapts a ConvNeXt image classifier to new images with LoRA",
          long_about = BEFORE, after_long_help = AFTER)]
pub struct Options {
    /// Folder of images, one subfolder a class [default: the optical digits of the repository]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Base model, a safetensors file [default: the digits model of the repository]
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Where to write the adapter, the merged model and the picture
    #[arg(long, value_name = "DIR", default_value = "output/finetune")]
    pub output: PathBuf,
    /// Passes over the training images
    #[arg(long, default_value_t = 15)]
    pub epochs: usize,
    /// Images a step
    #[arg(long, default_value_t = 32)]
    pub batch: usize,
    /// Rank of the low-rank updates
    #[arg(long, default_value_t = 8)]
    pub rank: usize,
    /// Numerator of their scaling alpha / rank [default: twice the rank]
    #[arg(long)]
    pub alpha: Option<f64>,
    /// Share of their inputs that is dropped in training
    #[arg(long, default_value_t = 0.0)]
    pub dropout: f64,
    /// Layers to adapt: ends of their names, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values = ["mlp.fc1", "mlp.fc2"])]
    pub target: Vec<String>,
    /// Biases to train
    #[arg(long, value_enum, default_value_t = Bias::All)]
    pub bias: Bias,
    /// Train the classifier in full, also when it is not fresh
    #[arg(long)]
    pub train_head: bool,
    /// Highest learning rate; it rises at first and then falls to 0
    #[arg(long, default_value_t = 5e-3)]
    pub lr: f64,
    /// How far training images are shifted, turned and zoomed; 0 leaves them as they are
    #[arg(long, default_value_t = 0.03)]
    pub augment: f64,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads to compute with [default: 1 for a model below 4 MB, else all]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Print the table of all layers
    #[arg(long)]
    pub summary: bool,
}

/// Which biases are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bias {
    /// No bias
    None,
    /// Those of the adapted layers
    LoraOnly,
    /// Every bias of the model
    All,
}

impl Options {
    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// Names the option and what it must be.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("epochs", self.epochs),
            ("batch", self.batch),
            ("rank", self.rank),
        ] {
            if value == 0 {
                bail!("--{name} is 0: it must be at least 1");
            }
        }
        if self.threads == Some(0) {
            bail!("--threads is 0: it must be at least 1");
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            bail!("--lr is {}: it must be above 0", self.lr);
        }
        if !(0.0..=0.5).contains(&self.augment) {
            bail!("--augment is {}: it must be from 0 to 0.5", self.augment);
        }
        self.lora(false).validate()?;
        Ok(())
    }

    /// The base model's file.
    pub fn checkpoint(&self) -> PathBuf {
        let bundled = || super::bundled("digits.safetensors");
        self.checkpoint.clone().unwrap_or_else(bundled)
    }

    /// How many threads to compute with, unless the environment says; `None` for all. With a small
    /// model threads wait for each other longer than they compute.
    pub fn threads(&self) -> Option<usize> {
        let small = || {
            let metadata = std::fs::metadata(self.checkpoint());
            metadata.is_ok_and(|metadata| metadata.len() < 4_000_000)
        };
        self.threads.or_else(|| small().then_some(1))
    }

    /// The LoRA configuration. `train_head` adds the classifier to what is trained in full.
    pub fn lora(&self, train_head: bool) -> LoraConfig {
        let alpha = self.alpha.unwrap_or(2.0 * self.rank as f64);
        let bias = match self.bias {
            Bias::None => TrainBias::None,
            Bias::LoraOnly => TrainBias::LoraOnly,
            Bias::All => TrainBias::All,
        };
        let config = LoraConfig::new(self.rank)
            .alpha(alpha)
            .dropout(self.dropout)
            .target_modules(self.target.clone())
            .train_bias(bias)
            .seed(self.seed);
        if train_head {
            config.modules_to_save(["head.fc"])
        } else {
            config
        }
    }
}

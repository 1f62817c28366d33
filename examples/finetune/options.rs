//! The command line.

use crate::args::{LoraArgs, any_number, count, positive, probability, train_in_full, up_to_half};
use crate::bundled::bundled;
use crate::threads;
use anyhow::{Context, Result};
use clap::Parser;
use lora::LoraConfig;
use lora::models::Architecture;
use lora::models::convnext::ConvNext;
use std::path::{Path, PathBuf};

const BEFORE: &str = "\
Adapts a ConvNeXt image classifier to new images with LoRA.

Without arguments: a model trained on one collection of handwritten digits (MNIST) is adapted to \
another (UCI optical digits), written by other people and scanned at another resolution. Both are \
in the repository. The last quarter of each class is held out and only used for the accuracy.";

const AFTER: &str = "\
What it writes into --output, replacing what an earlier run wrote there and nothing else:
  adapter/             the adapter in PEFT's format, with classes.json: `lora classify` uses it
  merged.safetensors   the base model with the adapter merged, and merged.json, its description
  predictions.png      some held-out images with the labels before and after
  finetune.json        the list of these files
If anything fails, or Ctrl-C stops it, an earlier run's files stay as they are.

Your own images:  cargo run --release --example finetune -- --data photos --output output/photos
where photos/cat/1.jpg, photos/cat/2.jpg, photos/dog/1.jpg, .. are PNG, JPEG or WebP files, one \
subfolder a class, with further folders inside if you like. Or photos/train/cat/1.jpg and \
photos/val/cat/2.jpg, .. (also valid, validation or test), which says what is held out. Files that \
are not read are listed. Images are cut to their middle square and brought to the model's size, \
56x56 for the model of the repository. What is transparent becomes white. If images are in colour \
and the model's are grey, as those of the repository's model, its first layer is widened to three \
channels and trained in full. If the model does not know the classes, it gets a fresh classifier, \
which is trained in full.

Another model:  --checkpoint model.safetensors, a ConvNeXt with timm's parameter names, and beside \
it model.json or timm's config.json.

The same seed gives the same result on the same machine with the same number of threads. Another \
number of threads may change the last bits of sums, and with them the result a little.";

/// What to do; `--help` tells the same.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "finetune",
    about = "Adapts a ConvNeXt image classifier to new images with LoRA",
    long_about = BEFORE,
    after_long_help = AFTER,
    mut_args(any_number),
    mut_arg("alpha", |arg| {
        arg.help("Numerator of their scaling alpha / rank [default: twice the rank]")
    }),
    mut_arg("bias", |arg| arg.default_value("all"))
)]
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
    #[arg(long, default_value_t = 15, value_parser = count)]
    pub epochs: usize,
    /// Images a step
    #[arg(long, default_value_t = 32, value_parser = count)]
    pub batch: usize,
    /// What is adapted and what is trained.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Train the classifier in full
    #[arg(long, alias = "train-head")]
    pub train_classifier: bool,
    /// Share of the adapters' inputs that is dropped in training
    #[arg(long, default_value_t = 0.0, value_parser = probability)]
    pub dropout: f64,
    /// Highest learning rate; it rises at first and then falls to 0
    #[arg(long, default_value_t = 5e-3, value_parser = positive)]
    pub lr: f64,
    /// How far training images are shifted, turned and zoomed, from 0 to 0.5
    #[arg(long, default_value_t = 0.03, value_parser = up_to_half)]
    pub augment: f64,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads to compute with, at most one a core; another number may change the last bits of the
    /// result [default: RAYON_NUM_THREADS, else 1 for a model below 4 MB, else all cores]
    #[arg(long, value_parser = threads::parse)]
    pub threads: Option<usize>,
    /// Print the table of all layers
    #[arg(long)]
    pub summary: bool,
}

impl Options {
    /// The base model's file.
    ///
    /// # Errors
    /// If none is given, and that of the repository is not found.
    pub fn checkpoint(&self) -> Result<PathBuf> {
        match &self.checkpoint {
            Some(checkpoint) => Ok(checkpoint.clone()),
            None => bundled("digits.safetensors").context("--checkpoint is not given"),
        }
    }

    /// The folder of images.
    ///
    /// # Errors
    /// If none is given, and that of the repository is not found.
    pub fn data(&self) -> Result<PathBuf> {
        match &self.data {
            Some(data) => Ok(data.clone()),
            None => bundled("optdigits").context("--data is not given"),
        }
    }

    /// The LoRA configuration, with modules that are trained in full whatever the options say.
    pub fn config<'a>(&self, in_full: impl IntoIterator<Item = &'a str>) -> LoraConfig {
        let alpha = self.lora.alpha.unwrap_or(2.0 * self.lora.rank as f64);
        let config = self.lora.config().alpha(alpha);
        let config = config.dropout(self.dropout).seed(self.seed);
        let classifier = self.train_classifier.then_some(ConvNext::CLASSIFIER);
        train_in_full(config, in_full.into_iter().chain(classifier))
    }
}

/// How many threads suit a model; `None` for all. With a small one they wait for each other longer
/// than they compute.
pub fn threads_for(checkpoint: &Path) -> Option<usize> {
    let metadata = std::fs::metadata(checkpoint);
    let small = metadata.is_ok_and(|metadata| metadata.len() < 4_000_000);
    small.then_some(1)
}

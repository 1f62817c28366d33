//! The options that the programs about text share.

use crate::args::{LoraArgs, count, positive, probability, share, train_in_full};
use crate::program::say;
use crate::steps::{Plan, Trained, fit};
use crate::{interrupt, program, threads};
use anyhow::Result;
use candle_nn::ParamsAdamW;
use clap::{Arg, Args};
use lora::data::BatchOptions;
use lora::train::{Dataset, Source};
use lora::{LoraConfig, Summary};
use std::process::ExitCode;

/// How a model of texts is tuned.
#[derive(Clone, Debug, Args)]
pub struct TuningArgs {
    /// Passes over the data to train on
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub epochs: usize,
    /// Texts a step
    #[arg(long, default_value_t = 16, value_parser = count)]
    pub batch: usize,
    /// Highest learning rate; it rises at first and then falls to 0
    #[arg(long, default_value_t = 5e-4, value_parser = positive)]
    pub lr: f64,
    /// Tokens of a text at most
    #[arg(long, default_value_t = 128, value_parser = count, value_name = "TOKENS")]
    pub max_length: usize,
    /// What is adapted and what is trained.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Share of the adapters' inputs that is dropped in training
    #[arg(long, default_value_t = 0.0, value_parser = probability)]
    pub dropout: f64,
    /// Share of the data that is held out and only used for the figures
    #[arg(long, default_value_t = 0.2, value_parser = share, value_name = "SHARE")]
    pub held_out: f64,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads to compute with, at most one a core; another number may change the last bits of the
    /// result [default: RAYON_NUM_THREADS, else all cores]
    #[arg(long, value_parser = threads::parse)]
    pub threads: Option<usize>,
    /// Print the table of all layers
    #[arg(long)]
    pub summary: bool,
}

/// The help of the adapters' scaling in these programs.
pub fn alpha(arg: Arg) -> Arg {
    arg.help("Numerator of their scaling alpha / rank [default: twice the rank]")
}

impl TuningArgs {
    /// Runs a program on the threads that the options ask for; Ctrl-C stops it at its next step.
    pub fn start(&self, run: impl FnOnce() -> Result<()>) -> ExitCode {
        program::run(|| {
            threads::set(self.threads, None)?;
            interrupt::catch()?;
            run()
        })
    }

    /// Prints what is adapted and trained: the table of all layers, if the options ask for that, or a line.
    ///
    /// # Errors
    /// As [`say`].
    pub fn tell(&self, summary: &Summary) -> Result<()> {
        match self.summary {
            true => say(format_args!("\n{summary}\n")),
            false => {
                let rank = self.lora.rank;
                say(format_args!("LoRA    rank {rank}: {}\n", summary.totals()))
            }
        }
    }

    /// Trains a model on a data set. `tokens` counts those of a batch.
    ///
    /// # Errors
    /// Those of [`fit`].
    pub fn fit<D: Dataset>(
        &self,
        model: &mut D::Model,
        data: &D,
        tokens: impl Fn(&D::Batch) -> lora::Result<usize>,
    ) -> Result<Trained> {
        let batches = BatchOptions::new(self.batch).seed(self.seed);
        let per_epoch = data.batches(&batches)?.batches_per_epoch().unwrap_or(0);
        let plan = Plan {
            epochs: self.epochs,
            steps: self.epochs * per_epoch,
            params: ParamsAdamW {
                lr: self.lr,
                weight_decay: 0.0,
                ..Default::default()
            },
            clip: Some(1.0),
            seed: self.seed,
        };
        fit(model, &plan, data, &batches, tokens)
    }

    /// The LoRA configuration, with modules that are trained in full whatever the options say.
    pub fn config<'a>(&self, in_full: impl IntoIterator<Item = &'a str>) -> LoraConfig {
        let alpha = self.lora.alpha.unwrap_or(2.0 * self.lora.rank as f64);
        let config = self.lora.config().alpha(alpha);
        train_in_full(config.dropout(self.dropout).seed(self.seed), in_full)
    }
}

//! The command line.

use crate::args::{any_number, count, positive};
use crate::bundled::bundled;
use crate::text::{Source, TuningArgs, alpha};
use anyhow::{Context, Result};
use clap::Parser;
use std::path::PathBuf;

const BEFORE: &str = "\
Tunes a language model (Llama, SmolLM2, Qwen, Mistral, Gemma, Phi-3, ..) to a text or to conversations, \
with LoRA.

Without arguments: a small model that has read two comedies of Shakespeare's, byte by byte, is tuned to \
Milton's Paradise Lost. Both are in the repository.";

const AFTER: &str = "\
Models:  --model DIR, a directory as transformers writes it: config.json, model.safetensors or its \
shards, tokenizer.json. Or --model OWNER/NAME, a repository of the Hugging Face hub, such as \
HuggingFaceTB/SmolLM2-135M, if the program is built with --features hub.

Data:  --data takes
  FILE.jsonl  a line for each record: {\"text\": \"..\"}, or {\"prompt\": \"..\", \"completion\": \"..\"}, of \
which the completion is learned, or {\"messages\": [{\"role\": \"user\", \"content\": \"..\"}, ..]}, of which \
the assistant's answers are; the model's chat template writes conversations
  FILE        any other file is one text, cut into passages of --max-length tokens
Of a text the last part is held out, of records some that the seed chooses.

What it writes into --output, replacing what an earlier run wrote there and nothing else:
  adapter/           the adapter in PEFT's format
  finetune_lm.json   the list of its files
If anything fails, or Ctrl-C stops it, an earlier run's files stay as they are.

The same seed gives the same result on the same machine with the same number of threads.";

/// What to do; `--help` tells the same.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "finetune_lm",
    about = "Tunes a language model to a text or to conversations with LoRA",
    long_about = BEFORE,
    after_long_help = AFTER,
    mut_args(any_number),
    mut_arg("alpha", alpha),
    mut_arg("target_modules", |arg| {
        arg.help(
            "Layers to adapt: ends of their paths, separated by commas, or all-linear [default: all-linear]",
        )
    }),
    mut_arg("epochs", |arg| arg.default_value("3")),
    mut_arg("batch", |arg| arg.default_value("8")),
    mut_arg("lr", |arg| arg.default_value("2e-3")),
    mut_arg("held_out", |arg| arg.default_value("0.1"))
)]
pub struct Options {
    /// Base model: a directory, a GGUF file, or a name on the Hugging Face hub [default: the model of the repository]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// What to learn: a text, or a JSONL file [default: two books of Paradise Lost]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Where to write the adapter
    #[arg(long, value_name = "DIR", default_value = "output/finetune_lm")]
    pub output: PathBuf,
    /// What the samples go on with [default: the beginning of what is held out]
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Tokens of a sample
    #[arg(long, default_value_t = 200, value_parser = count, value_name = "TOKENS")]
    pub sample: usize,
    /// Below 1 for likely tokens in samples, above 1 for variety
    #[arg(long, default_value_t = 0.7, value_parser = positive)]
    pub temperature: f64,
    /// Passages that the perplexity is measured on at most, spread over what is held out
    #[arg(long, default_value_t = 200, value_parser = count, value_name = "PASSAGES")]
    pub evaluate: usize,
    /// How the model is tuned.
    #[command(flatten)]
    pub tuning: TuningArgs,
}

impl Options {
    /// The base model.
    ///
    /// # Errors
    /// If there is no such model.
    pub fn source(&self) -> Result<Source> {
        match &self.model {
            Some(model) => Source::find(model),
            None => {
                let directory = bundled("text/bard").context(
                    "--model is not given: name a directory with config.json, model.safetensors and \
                     tokenizer.json",
                )?;
                Ok(Source {
                    name: directory.display().to_string(),
                    path: directory,
                })
            }
        }
    }

    /// What is learned.
    ///
    /// # Errors
    /// If none is given, and that of the repository is not found.
    pub fn data(&self) -> Result<PathBuf> {
        match &self.data {
            Some(data) => Ok(data.clone()),
            None => bundled("text/paradise.txt").context("--data is not given"),
        }
    }
}

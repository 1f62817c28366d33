//! `lora classify`: the classes of texts and of images.

mod images;
mod shown;

use crate::model::{ModelArgs, Named, load};
use crate::shell::common::Common;
use crate::texts::{self, Batched};
use anyhow::{Context, Result, bail};
use clap::Args;
use lora::models::encoder::Encoder;
use lora::models::{Auto, Created, Task};
use shown::{Found, show};
use std::path::PathBuf;

/// The options.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelArgs,
    /// Texts; or files of images, PNG, JPEG or WebP, for a model of images
    #[arg(value_name = "TEXT OR IMAGE")]
    inputs: Vec<String>,
    /// File with a text on each line, or .jsonl with "text" in each record, or the path of an image on each
    /// line; - for the standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "inputs")]
    file: Option<PathBuf>,
    /// Show this many of the likeliest classes
    #[arg(long, value_name = "NUMBER", default_value_t = 3,
        value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    /// Tokens of a text at most [default: as many as the model takes]
    #[arg(long, value_name = "NUMBER")]
    max_length: Option<usize>,
    /// Texts or images at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    #[command(flatten)]
    common: Common,
}

/// Does it.
///
/// # Errors
/// If model, adapters, texts or images cannot be used.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    let inputs = texts::read(&options.inputs, options.file.as_deref())?;
    let named = options.model.find()?;
    let found = match named.open()? {
        Auto::Encoder(created) => of_texts(options, &named, *created, &inputs)?,
        Auto::Vit(created) => {
            let labels = created.config.labels.clone();
            named.check_head(&created.fresh)?;
            let model = load(&created.model, &named.adapters)?;
            images::classify(
                options,
                &named,
                &model,
                created.config.in_chans,
                labels,
                &inputs,
            )?
        }
        Auto::ConvNext(created) => {
            named.check_head(&created.fresh)?;
            let model = load(&created.model, &named.adapters)?;
            images::classify(
                options,
                &named,
                &model,
                created.config.in_chans,
                Vec::new(),
                &inputs,
            )?
        }
        _ => bail!(
            "--model {} is a language model: encoders, ConvNeXt and vision transformers tell classes apart",
            named.source.name
        ),
    };
    show(
        &found,
        &named.source.name,
        usize::from(options.top),
        &options.common,
    )
}

/// The classes of texts.
fn of_texts(
    options: &Options,
    named: &Named,
    created: Created<Encoder>,
    texts: &[texts::Text],
) -> Result<Found> {
    let config = &created.config;
    if config.task != Task::SequenceClassification {
        bail!(
            "--model {} has no head for classes of texts, and no --adapter brings one",
            named.source.name
        );
    }
    named.check_head(&created.fresh)?;
    let model = load(&created.model, &named.adapters)?;
    let batched = Batched::new(
        texts,
        named.source.tokenizer()?,
        config,
        options.max_length,
        usize::from(options.batch),
    )?;
    let logits = batched.rows(|inputs| model.forward(inputs, false))?;
    let names = texts.iter().map(|text| match &text.pair {
        Some(pair) => format!("{} | {pair}", text.text),
        None => text.text.clone(),
    });
    let classes = named.class_names(config.labels.clone(), config.labels.len())?;
    Found::new(names.collect(), classes, logits).context("cannot use the model's logits")
}

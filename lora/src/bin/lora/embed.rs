//! `lora embed`: texts as vectors.

use crate::model::{ModelArgs, load};
use crate::shell::common::Common;
use crate::shell::output::{Output, OutputFile};
use crate::shell::print::say;
use crate::texts::{self, Batched};
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use clap::Args;
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The options.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelArgs,
    /// Texts
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// File with a text on each line, or .jsonl with "text" in each record; - for the standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// Put this in front of each text, as some models want: "query: "
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
    /// Make each vector one long, whatever the model's files say
    #[arg(long)]
    normalize: bool,
    /// Tokens of a text at most [default: as many as the model takes]
    #[arg(long, value_name = "NUMBER")]
    max_length: Option<usize>,
    /// Texts at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// File to write: .jsonl, or .safetensors with a tensor `embeddings` [default: JSONL to the standard
    /// output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    written: Output,
    #[command(flatten)]
    common: Common,
}

/// Does it.
///
/// # Errors
/// If model, adapters or texts cannot be used, or the output cannot be written.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    let output = options.output.as_deref();
    let output = output
        .map(|path| Vectors::new(path, options.written))
        .transpose()?;
    let mut texts = texts::read(&options.texts, options.file.as_deref())?;
    for text in &mut texts {
        text.text.insert_str(0, &options.prefix);
    }
    let named = options.model.find()?;
    let tokenizer = named.source.tokenizer()?;
    let created = named.open()?.into_encoder().with_context(|| {
        format!(
            "cannot use --model {}: encoders make vectors of texts",
            named.source.name
        )
    })?;
    let model = load(&created.model, &named.adapters)?;
    let batch = usize::from(options.batch);
    let batched = Batched::new(
        &texts,
        tokenizer,
        &created.config,
        options.max_length,
        batch,
    )?;
    let mut rows = batched.rows(|inputs| model.embed(inputs, false))?;
    if options.normalize {
        rows.iter_mut().for_each(|row| normalize(row));
    }
    let width = rows.first().map_or(0, Vec::len);
    let lines = || {
        let lines = texts.iter().zip(&rows);
        lines.map(|(text, row)| json!({"text": text.text, "embedding": row}).to_string())
    };
    let count = texts.len();
    match (&output, options.common.json) {
        (Some(output), json) => {
            match output.is_safetensors {
                true => output.file.write(&safetensors(&rows, width)?)?,
                false => output.file.write(
                    &lines()
                        .map(|line| line + "\n")
                        .collect::<String>()
                        .into_bytes(),
                )?,
            }
            let path = output.file.path();
            match json {
                true => say(json!({
                    "model": named.source.name, "texts": count, "width": width, "output": path,
                })),
                false => say(format_args!(
                    "{count} vectors of {width} values: {}",
                    path.display()
                )),
            }
        }
        (None, true) => say(json!({
            "model": named.source.name, "texts": count, "width": width, "embeddings": rows,
        })),
        (None, false) => lines().try_for_each(say),
    }
}

/// Where vectors go.
struct Vectors {
    file: OutputFile,
    is_safetensors: bool,
}

impl Vectors {
    fn new(path: &Path, written: Output) -> Result<Self> {
        let end = path.extension().unwrap_or_default();
        let is_safetensors = end.eq_ignore_ascii_case("safetensors");
        if !is_safetensors && !end.eq_ignore_ascii_case("jsonl") {
            bail!(
                "--output {}: its name must end in .jsonl or .safetensors",
                path.display()
            );
        }
        Ok(Self {
            file: written.file(path).context("cannot use --output")?,
            is_safetensors,
        })
    }
}

fn safetensors(rows: &[Vec<f32>], width: usize) -> Result<Vec<u8>> {
    let tensor = Tensor::from_vec(rows.concat(), (rows.len(), width), &Device::Cpu)?;
    let tensors = HashMap::from([("embeddings", tensor)]);
    Ok(safetensors::serialize(tensors, None)?)
}

/// Makes a vector one long. Zeros stay zeros.
fn normalize(row: &mut [f32]) {
    let square: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
    // The smallest is sentence-transformers' bound.
    let length = square.sqrt().max(1e-12);
    row.iter_mut()
        .for_each(|value| *value = (f64::from(*value) / length) as f32);
}

//! Texts for an encoder: read, cut, in batches of about one length.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use lora::data::{Pad, read_jsonl};
use lora::models::encoder::{EncoderConfig, Inputs};
use lora::text::{Encoding, Input, Tokenizer};
use serde::Deserialize;
use std::cmp::Reverse;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// A text, or two that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Text {
    /// The text.
    pub text: String,
    /// The second, of tasks on two texts.
    #[serde(default, rename = "text_pair")]
    pub pair: Option<String>,
}

impl Text {
    /// A text alone.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            pair: None,
        }
    }
}

/// The texts of the command line, or of a file: JSONL with `text`, if its name ends in .jsonl, else a text
/// a line; `-` is the standard input.
///
/// # Errors
/// If there is none, or the file cannot be read.
pub fn read(given: &[String], file: Option<&Path>) -> Result<Vec<Text>> {
    let texts: Vec<Text> = match file {
        None => given.iter().map(Text::new).collect(),
        Some(path) => {
            of_file(path).with_context(|| format!("cannot use --file {}", path.display()))?
        }
    };
    if texts.is_empty() {
        match file {
            Some(path) => bail!("--file {} holds no text", path.display()),
            None => bail!("there is no text: give texts, or --file FILE"),
        }
    }
    Ok(texts)
}

/// Whether a file has a record on each line.
pub fn is_jsonl(path: &Path) -> bool {
    let end = path.extension().unwrap_or_default();
    ["jsonl", "json"]
        .iter()
        .any(|known| end.eq_ignore_ascii_case(known))
}

/// The line of a JSONL file's record, as errors name it; the records have numbers from 0.
pub fn line(path: &Path, record: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = (1..).zip(text.lines());
    let mut lines = lines.filter(|(_, line)| !line.trim().is_empty());
    match lines.nth(record) {
        Some((number, _)) => format!("line {number}"),
        None => format!("record {}", record + 1),
    }
}

fn of_file(path: &Path) -> Result<Vec<Text>> {
    if is_jsonl(path) {
        return Ok(read_jsonl(path)?);
    }
    let text = match path == Path::new("-") {
        true => {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text)?;
            text
        }
        false => fs::read_to_string(path)?,
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(lines.map(Text::new).collect())
}

/// Texts as tokens, in batches.
pub struct Batched {
    encodings: Vec<Encoding>,
    pad: Pad,
    has_types: bool,
    batch: usize,
}

impl Batched {
    /// Encodes texts, cut to `most` tokens, and to what the model takes.
    ///
    /// # Errors
    /// If a text has no tokens, or `most` is too small.
    pub fn new(
        texts: &[Text],
        tokenizer: Tokenizer,
        config: &EncoderConfig,
        most: Option<usize>,
        batch: usize,
    ) -> Result<Self> {
        let limits = [most, tokenizer.longest(), Some(config.longest())];
        let most = limits.into_iter().flatten().min().unwrap_or(usize::MAX);
        let tokenizer = tokenizer
            .truncate_to(most)
            .context("--max-length is too small")?;
        let inputs = texts.iter().map(|text| Input {
            text: &text.text,
            pair: text.pair.as_deref(),
        });
        Ok(Self {
            encodings: tokenizer.encode_batch(inputs)?,
            pad: Pad::new(tokenizer.pad()).side(tokenizer.padding_side()),
            has_types: config.type_vocab_size > 1 && texts.iter().any(|text| text.pair.is_some()),
            batch,
        })
    }

    /// What `of` makes of each text, a row of values each, in the order of the texts.
    ///
    /// # Errors
    /// Those of `of`.
    pub fn rows(
        &self,
        mut of: impl FnMut(&Inputs<'_>) -> candle_core::Result<Tensor>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut order: Vec<usize> = (0..self.encodings.len()).collect();
        order.sort_by_key(|&index| Reverse(self.encodings[index].ids.len()));
        let mut rows = vec![Vec::new(); order.len()];
        for indices in order.chunks(self.batch.max(1)) {
            let device = &Device::Cpu;
            let batch: Vec<&Encoding> = indices
                .iter()
                .map(|&index| &self.encodings[index])
                .collect();
            let tokens = self.pad.tokens(&batch, device)?;
            let kinds: Vec<&[u32]> = batch.iter().map(|one| one.types.as_slice()).collect();
            let kinds = self.has_types.then(|| self.pad.rows(&kinds, 0, device));
            let kinds = kinds.transpose()?;
            let mut inputs = Inputs::new(&tokens.ids).mask(&tokens.mask);
            if let Some(kinds) = &kinds {
                inputs = inputs.types(kinds);
            }
            let made = of(&inputs).context("the model does not fit the texts")?;
            let made: Vec<Vec<f32>> = made.to_dtype(DType::F32)?.to_vec2()?;
            for (&index, row) in indices.iter().zip(made) {
                rows[index] = row;
            }
        }
        Ok(rows)
    }
}

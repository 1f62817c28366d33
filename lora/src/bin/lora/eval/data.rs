//! What a model is measured on.

use crate::texts::is_jsonl;
use anyhow::Result;
use lora::data::{DataKind, Labelled, Pair, read_jsonl};
use std::fs;
use std::path::Path;

/// Examples of one kind.
pub enum Data {
    /// Texts, completions, conversations; the tokenizer reads them.
    Records,
    /// One text, of which passages are measured.
    Passages(String),
    /// Texts with labels.
    Labelled(Vec<Labelled>),
    /// Texts that belong together.
    Pairs(Vec<Pair>),
    /// A folder of images.
    Images,
}

impl Data {
    /// Reads the first examples of a file; of a folder nothing yet.
    ///
    /// # Errors
    /// If the file cannot be read, or its lines are not of one kind.
    pub fn read(path: &Path, limit: usize) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Images);
        }
        if !is_jsonl(path) {
            return Ok(Self::Passages(fs::read_to_string(path)?));
        }
        let mut data = match DataKind::of(path)? {
            DataKind::Labelled => Self::Labelled(read_jsonl(path)?),
            DataKind::Pairs => Self::Pairs(read_jsonl(path)?),
            _ => Self::Records,
        };
        match &mut data {
            Self::Labelled(records) => records.truncate(limit),
            Self::Pairs(records) => records.truncate(limit),
            Self::Records | Self::Passages(_) | Self::Images => {}
        }
        Ok(data)
    }

    /// What it holds, as errors say.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Records | Self::Passages(_) => "holds texts for a language model",
            Self::Labelled(_) => "holds texts with labels, for an encoder with a head",
            Self::Pairs(_) => "holds pairs of texts, for an encoder",
            Self::Images => "is a folder of images",
        }
    }
}

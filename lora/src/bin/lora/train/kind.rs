//! What kind of job the data asks for, and how it is done where nobody says otherwise.

pub use crate::texts::is_jsonl;

use anyhow::Result;
use lora::data::DataKind;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Tokens of a text at most, where nobody says otherwise.
pub const MAX_LENGTH: usize = 128;

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The next token, of a text, completions or conversations.
    Language,
    /// The classes of texts.
    Classes,
    /// Which texts belong together.
    Pairs,
    /// The classes of images.
    Images,
}

impl Kind {
    /// What the data of a file teaches.
    ///
    /// # Errors
    /// If the records are of no known kind, with the line.
    pub fn of(data: &Path) -> Result<Self> {
        if data.is_dir() {
            return Ok(Self::Images);
        }
        if !is_jsonl(data) {
            return Ok(Self::Language);
        }
        Ok(match DataKind::of(data)? {
            DataKind::Labelled => Self::Classes,
            DataKind::Pairs => Self::Pairs,
            _ => Self::Language,
        })
    }

    /// What its examples are called.
    pub fn examples(self) -> &'static str {
        match self {
            Self::Language | Self::Classes => "texts",
            Self::Pairs => "pairs",
            Self::Images => "images",
        }
    }

    /// The settings that every run of this kind has, where nobody gives others.
    pub fn defaults(self) -> Map<String, Value> {
        let (epochs, batch, lr, held_out) = match self {
            Self::Language => (3, 8, 2e-3, 0.1),
            // One pass at 5e-4, enough for the mails of thousands, leaves 1,500 texts at the commonest class.
            Self::Classes => (3, 16, 2e-3, 0.2),
            Self::Pairs => (3, 64, 5e-4, 0.25),
            Self::Images => (15, 32, 5e-3, 0.25),
        };
        let mut all = json!({
            "held_out": held_out, "max_length": MAX_LENGTH, "output": "output",
            "rank": 8, "dropout": 0.0, "bias": "none", "dora": false, "rslora": false,
            "lora_bias": false, "init": "default", "recompute": false, "modules_to_save": [],
            "epochs": epochs, "batch": batch, "accumulate": 1, "seed": 0,
            "optimizer": "adamw", "lr": lr, "schedule": "cosine", "warmup": 0.05,
            "weight_decay": 0.0, "clip": 1.0,
            "eval_every": "epoch", "save_every": "epoch", "keep": 2, "end_with_best": false,
            "check_gradients": true, "tensorboard": false,
        });
        match self {
            Self::Language => {
                all["eval_limit"] = 200.into();
                all["pack"] = false.into();
                all["learn_prompts"] = false.into();
            }
            Self::Pairs => all["eval_limit"] = 2000.into(),
            Self::Images => {
                for off in ["hflip", "vflip", "color_jitter", "warp"] {
                    all[off] = 0.0.into();
                }
            }
            Self::Classes => {}
        }
        match all {
            Value::Object(all) => all,
            _ => Map::new(),
        }
    }
}

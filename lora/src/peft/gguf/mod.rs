//! Adapters in llama.cpp's format, GGUF, from and to PEFT's directories.

mod header;
mod names;
mod read;
mod write;

pub use read::gguf_to_adapter;
pub use write::adapter_to_gguf;

use crate::file;
use crate::{Error, Result};
use candle_core::DType;
use serde_json::Value;
use std::path::Path;

/// The version that is written.
const VERSION: u32 = 3;

/// Where tensors begin, unless a file says otherwise.
const ALIGNMENT: u64 = 32;

/// What the file formats do not say about a model, and how a GGUF file is written.
///
/// ```
/// use lora::peft::GgufOptions;
///
/// let options = GgufOptions::new("llama").heads(32, 8);
/// assert_eq!((options.heads, options.kv_heads), (Some(32), Some(8)));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GgufOptions {
    /// llama.cpp's name of the architecture: `llama` (Llama and Mistral), `qwen2`, `qwen3`,
    /// `gemma`, `gemma2`, `gemma3`. When a GGUF file is read, `None` takes the file's own.
    pub arch: Option<String>,
    /// The model's attention heads. Needed for the queries of `llama`, whose rows llama.cpp
    /// stores in another order.
    pub heads: Option<usize>,
    /// The model's heads of keys and values. Needed for the keys of `llama`.
    pub kv_heads: Option<usize>,
    /// Dtype of the tensors in a GGUF file: F32, F16 or BF16.
    pub dtype: DType,
}

impl Default for GgufOptions {
    fn default() -> Self {
        Self {
            arch: None,
            heads: None,
            kv_heads: None,
            dtype: DType::F32,
        }
    }
}

impl GgufOptions {
    /// For a model of this architecture; F32.
    pub fn new(arch: impl Into<String>) -> Self {
        Self {
            arch: Some(arch.into()),
            ..Self::default()
        }
    }

    /// Sets the numbers of heads: of queries, and of keys and values.
    pub fn heads(mut self, heads: usize, kv_heads: usize) -> Self {
        (self.heads, self.kv_heads) = (Some(heads), Some(kv_heads));
        self
    }

    /// Sets [`dtype`](Self::dtype).
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// The architecture and the numbers of heads from the base model's `config.json`.
    ///
    /// # Errors
    /// If the file cannot be read, or its model has none of the architectures that
    /// [`arch`](Self::arch) lists.
    pub fn from_model_config(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let config: Value = serde_json::from_slice(&file::read_bounded(path)?)
            .map_err(|error| Error::file(path, format!("is not valid JSON: {error}")))?;
        // A model of text and images keeps the settings of its text model apart.
        let config = config.get("text_config").unwrap_or(&config);
        let model_type = config.get("model_type").and_then(Value::as_str);
        let model_type = model_type.unwrap_or_default();
        let arch = match model_type {
            "llama" | "mistral" => "llama",
            "gemma3_text" => "gemma3",
            other => other,
        };
        if !names::ARCHS.contains(&arch) {
            let model_type = crate::error::shorten(model_type);
            let problem = format!("has `model_type` \"{model_type}\": {}", names::known());
            return Err(Error::file(path, problem));
        }
        let number = |key: &str| {
            let number = config.get(key).and_then(Value::as_u64)?;
            usize::try_from(number).ok()
        };
        let heads = number("num_attention_heads");
        Ok(Self {
            arch: Some(arch.into()),
            heads,
            kv_heads: number("num_key_value_heads").or(heads),
            ..Self::default()
        })
    }
}

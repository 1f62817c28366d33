//! Adapters in llama.cpp's format, GGUF, from and to PEFT's directories.
//!
//! `plan` finds the places of a file's modules, `sources` has what a tensor of a GGUF file consists
//! of.

mod merge;
mod plan;
mod read;
mod sources;
mod write;

pub use merge::{GgufMergeReport, merge_gguf, merge_gguf_with};
pub use read::gguf_to_adapter;
pub use write::adapter_to_gguf;

use crate::file;
use crate::gguf::archs;
use crate::gguf::rows::Heads;
use crate::{Error, Result};
use candle_core::DType;
use serde_json::Value;
use std::path::Path;

/// The version that is written.
const VERSION: u32 = 3;

/// Whether a model's head is the embedding.
const TIED: &str = "tie_word_embeddings";

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
    /// llama.cpp's name of the architecture. When a GGUF file is read, `None` takes the file's own.
    ///
    /// | for | `arch` |
    /// |---|---|
    /// | Llama, Mistral, Mixtral | `llama` |
    /// | Qwen | `qwen2`, `qwen2moe`, `qwen3`, `qwen3moe` |
    /// | Gemma | `gemma`, `gemma2`, `gemma3`, `gemma4` |
    /// | Phi | `phi2`, `phi3` |
    /// | Granite, SmolLM3, StableLM, StarCoder2 | `granite`, `smollm3`, `stablelm`, `starcoder2` |
    /// | OLMo | `olmo`, `olmo2`, `olmoe` |
    /// | Command R | `command-r`, `cohere2` |
    /// | DeepSeek V2 and V3, GLM-4, InternLM2 | `deepseek2`, `glm4`, `internlm2` |
    /// | EXAONE 4, Nemotron, Seed-OSS | `exaone4`, `nemotron`, `seed_oss` |
    /// | Falcon, GPT-2, GPT-NeoX, BLOOM | `falcon`, `gpt2`, `gptneox`, `bloom` |
    /// | BERT, RoBERTa, Nomic | `bert`, `nomic-bert` |
    pub arch: Option<String>,
    /// The model's attention heads. Needed where llama.cpp stores the rows of queries in another
    /// order: `llama`, `granite`, `smollm3`, `olmo`, `falcon`, `gptneox`, `bloom`, `internlm2`.
    pub heads: Option<usize>,
    /// The model's heads of keys and values. Needed for the same architectures.
    pub kv_heads: Option<usize>,
    /// The model's experts in a layer. Needed for adapters of experts, as llama.cpp has one weight
    /// for all of these.
    pub experts: Option<usize>,
    /// Whether the head is the embedding; `None` for what transformers takes where a model does not
    /// say `tie_word_embeddings`. llama.cpp then takes an adapter for neither.
    pub tied: Option<bool>,
    /// Dtype of the tensors in a GGUF file: F32, F16 or BF16.
    pub dtype: DType,
}

impl Default for GgufOptions {
    fn default() -> Self {
        Self {
            arch: None,
            heads: None,
            kv_heads: None,
            experts: None,
            tied: None,
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

    /// What the order of rows depends on.
    fn of_rows(&self) -> Heads {
        Heads {
            queries: self.heads,
            keys: self.kv_heads,
            of_file: false,
        }
    }

    /// Sets [`experts`](Self::experts).
    pub fn experts(mut self, experts: usize) -> Self {
        self.experts = Some(experts);
        self
    }

    /// Sets [`tied`](Self::tied).
    pub fn tied(mut self, tied: bool) -> Self {
        self.tied = Some(tied);
        self
    }

    /// Sets [`dtype`](Self::dtype).
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// The architecture, the numbers of heads and experts, and whether the head is the embedding,
    /// from the base model's `config.json`.
    ///
    /// # Errors
    /// If the file cannot be read, or its model has none of the architectures that
    /// [`arch`](Self::arch) lists.
    pub fn from_model_config(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let config: Value = serde_json::from_slice(&file::read_bounded(path)?)
            .map_err(|error| Error::file(path, format!("is not valid JSON: {error}")))?;
        Self::of_model_config(path, &config)
    }

    /// Those of a model in a GGUF file, whose metadata says what a `config.json` would.
    pub(in crate::peft) fn from_model(gguf: &Path) -> Result<Self> {
        let config = crate::gguf::open(gguf)?.model_config()?;
        Self::of_model_config(gguf, &config.unwrap_or_default())
    }

    fn of_model_config(path: &Path, config: &Value) -> Result<Self> {
        let is_tied = config.get(TIED).and_then(Value::as_bool);
        // A model of text and images keeps the settings of its text model apart.
        let config = config.get("text_config").unwrap_or(config);
        let model_type = config.get("model_type").and_then(Value::as_str);
        let model_type = model_type.unwrap_or_default();
        let Some(arch) = archs::of_model(model_type) else {
            let model_type = crate::error::shorten(model_type);
            let problem = format!("has `model_type` \"{model_type}\": {}", archs::known());
            return Err(Error::file(path, problem));
        };
        let number = |keys: &[&str]| {
            let number = keys.iter().find_map(|key| config.get(key)?.as_u64())?;
            usize::try_from(number).ok()
        };
        let flag = |key: &str| config.get(key).and_then(Value::as_bool);
        let heads = number(&["num_attention_heads", "n_head"]);
        // Falcon's first models have one head of keys, whatever number they name.
        let is_single = arch.name == "falcon"
            && flag("multi_query") != Some(false)
            && flag("new_decoder_architecture") != Some(true);
        let kv_heads = match is_single {
            true => Some(1),
            false => number(&["num_key_value_heads", "num_kv_heads"]).or(heads),
        };
        Ok(Self {
            arch: Some(arch.name.into()),
            heads,
            kv_heads,
            experts: number(&["num_local_experts", "num_experts", "n_routed_experts"]),
            tied: Some(is_tied.or(flag(TIED)).unwrap_or(arch.is_tied)),
            ..Self::default()
        })
    }
}

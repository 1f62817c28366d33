//! [`AdapterConfig`]: the contents of `adapter_config.json`.

use super::{CONFIG_FILE, files, parse};
use crate::{Error, Init, LoraConfig, Result, Targets, TrainBias};
use indexmap::IndexMap;
use serde::{Serialize, Serializer};
use std::path::Path;

/// The contents of `adapter_config.json`, as far as they are supported.
///
/// All 41 keys that PEFT writes for LoRA are understood. One that switches on a feature that is
/// not supported (`use_dora`, `lora_bias`, `target_parameters`, `layers_to_transform`, an
/// `init_lora_weights` that changes the base model, ..) is an error that names it. A key that PEFT
/// does not know is an error too, unless its value is null, false or empty.
///
/// Written are the keys that PEFT needs and this type's fields, sorted as PEFT sorts them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AdapterConfig {
    /// Alphas by pattern, see [`LoraConfig::alpha_pattern`].
    #[serde(serialize_with = "numbers")]
    pub alpha_pattern: IndexMap<String, f64>,
    /// The base model that the adapter was trained on: a name on the hub or a path. For the
    /// reader's information.
    pub base_model_name_or_path: Option<String>,
    /// Which biases were trained and are in the file.
    pub bias: TrainBias,
    /// Layers without an adapter, whatever the targets say.
    pub exclude_modules: Option<Targets>,
    /// Whether the base layers hold their weight as (in, out). Of no effect on the file.
    pub fan_in_fan_out: bool,
    /// True in a saved adapter.
    pub inference_mode: bool,
    /// How the adapter started. Of no effect on a trained one.
    #[serde(rename = "init_lora_weights", serialize_with = "init")]
    pub init: Init,
    /// Numerator of the scaling.
    #[serde(serialize_with = "number")]
    pub lora_alpha: f64,
    /// Dropout in training.
    pub lora_dropout: f64,
    /// Modules that were trained in full and are in the file.
    pub modules_to_save: Option<Vec<String>>,
    peft_type: &'static str,
    /// Rank.
    pub r: usize,
    /// Ranks by pattern, see [`LoraConfig::rank_pattern`].
    pub rank_pattern: IndexMap<String, usize>,
    /// Layers with an adapter.
    pub target_modules: Option<Targets>,
    /// What the model is used for.
    pub task_type: Option<TaskType>,
    use_dora: bool,
    /// Scale by alpha / √r.
    pub use_rslora: bool,
}

impl AdapterConfig {
    /// Reads `adapter_config.json` of a directory.
    ///
    /// # Errors
    /// If the file cannot be read, is no JSON object, or holds values that are wrong or not
    /// supported; all of them are listed.
    pub fn read(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let json = files::read_config(dir)?;
        Self::parse(&json).map_err(|problems| Error::File {
            path: dir.join(CONFIG_FILE),
            problems,
        })
    }

    /// Parses JSON; an error holds every problem.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Vec<String>> {
        parse::parse(json)
    }

    /// PEFT's defaults.
    pub(super) fn new() -> Self {
        Self {
            alpha_pattern: IndexMap::new(),
            base_model_name_or_path: None,
            bias: TrainBias::None,
            exclude_modules: None,
            fan_in_fan_out: false,
            inference_mode: true,
            init: Init::Default,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            modules_to_save: None,
            peft_type: "LORA",
            r: 8,
            rank_pattern: IndexMap::new(),
            target_modules: None,
            task_type: None,
            use_dora: false,
            use_rslora: false,
        }
    }

    /// The file's bytes: JSON with two spaces of indentation and sorted keys, as PEFT writes it.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }

    /// The settings for a new LoRA model. See also [`LoraConfig::from_pretrained`].
    pub fn to_lora_config(&self) -> LoraConfig {
        let mut config = LoraConfig::new(self.r)
            .alpha(self.lora_alpha)
            .dropout(self.lora_dropout)
            .train_bias(self.bias)
            .use_rslora(self.use_rslora)
            .init(self.init)
            .modules_to_save(self.modules_to_save.iter().flatten());
        config.target_modules = self.target_modules.clone();
        config.exclude_modules = self.exclude_modules.clone();
        config.rank_pattern = self.rank_pattern.clone();
        config.alpha_pattern = self.alpha_pattern.clone();
        config
    }
}

impl LoraConfig {
    /// The settings of an adapter in PEFT's format, to train a new one alike.
    ///
    /// # Errors
    /// Those of [`AdapterConfig::read`].
    pub fn from_pretrained(dir: impl AsRef<Path>) -> Result<Self> {
        Ok(AdapterConfig::read(dir)?.to_lora_config())
    }
}

/// PEFT's `task_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskType {
    /// Classification of sequences.
    SeqCls,
    /// Encoder and decoder.
    #[serde(rename = "SEQ_2_SEQ_LM")]
    Seq2SeqLm,
    /// Language model.
    CausalLm,
    /// Classification of tokens.
    TokenCls,
    /// Extractive question answering.
    QuestionAns,
    /// Features for other models.
    FeatureExtraction,
}

impl TaskType {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "SEQ_CLS" => Self::SeqCls,
            "SEQ_2_SEQ_LM" => Self::Seq2SeqLm,
            "CAUSAL_LM" => Self::CausalLm,
            "TOKEN_CLS" => Self::TokenCls,
            "QUESTION_ANS" => Self::QuestionAns,
            "FEATURE_EXTRACTION" => Self::FeatureExtraction,
            _ => return None,
        })
    }

    /// The heads that PEFT adds to `modules_to_save` by itself, whether or not the model has them.
    pub(super) fn heads(self) -> &'static [&'static str] {
        match self {
            Self::SeqCls | Self::TokenCls => &["classifier", "score"],
            Self::QuestionAns => &["qa_outputs"],
            _ => &[],
        }
    }
}

/// Whole numbers as integers, which is how PEFT writes its own.
fn number<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        serializer.serialize_i64(*number as i64)
    } else {
        serializer.serialize_f64(*number)
    }
}

fn numbers<S: Serializer>(map: &IndexMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
    struct Number(f64);
    impl Serialize for Number {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            number(&self.0, serializer)
        }
    }
    serializer.collect_map(map.iter().map(|(key, value)| (key, Number(*value))))
}

fn init<S: Serializer>(init: &Init, serializer: S) -> Result<S::Ok, S::Error> {
    match init {
        Init::Gaussian => serializer.serialize_str("gaussian"),
        Init::Random => serializer.serialize_bool(false),
        // Of others PEFT would compute the start anew from the base, and some change it.
        _ => serializer.serialize_bool(true),
    }
}

//! [`AdapterConfig`]: the contents of `adapter_config.json`.

use super::{parse, write};
use crate::adapter::Part;
use crate::error::shorten;
use crate::peft::experts::Layout;
use crate::peft::{CONFIG_FILE, files};
use crate::{Error, Init, Result, Targets, TrainBias};
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The contents of `adapter_config.json`: the 41 keys that PEFT writes for LoRA.
///
/// Reading is lenient in what it keeps and strict in what it understands. A value of a wrong type
/// is an error. Settings that only PEFT can run (Arrow routing, KaSA, ..) are kept as they are, so
/// that a file can be looked at and written again. A key that PEFT does not know goes to
/// [`unknown`](Self::unknown); whatever loads the adapter tells of such keys. Absent keys have
/// PEFT's defaults, and so do flags that are null. PEFT's `runtime_config` is passed over.
///
/// [`to_lora_config`](Self::to_lora_config) refuses features that do not run here.
///
/// Writing gives all 41 keys with the bytes that PEFT writes: sorted, two spaces of indentation,
/// ASCII. Two things differ. The keys of [`rank_pattern`](Self::rank_pattern) and
/// [`alpha_pattern`](Self::alpha_pattern) keep their order, as the first match wins; PEFT sorts the
/// keys, which can change their meaning. A whole alpha is written without a fraction.
///
/// ```
/// use lora::LoraConfig;
/// use lora::peft::AdapterConfig;
///
/// let config = LoraConfig::new(8).alpha(16.0).target_modules(["q_proj", "v_proj"]);
/// let file = AdapterConfig::from_lora_config(&config)?;
/// assert_eq!((file.r, file.lora_alpha, file.use_dora), (8, 16.0, false));
/// assert_eq!(file.to_lora_config()?, config);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AdapterConfig {
    /// Tokens that switch an activated LoRA on; kept, not run.
    pub alora_invocation_tokens: Value,
    /// Alphas by pattern, see [`LoraConfig::alpha_pattern`](crate::LoraConfig::alpha_pattern).
    #[serde(serialize_with = "write::numbers")]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Arrow routing; kept, not run.
    pub arrow_config: Value,
    /// The class of a model without a task: for the reader's information.
    pub auto_mapping: Value,
    /// The base model that the adapter was trained on: a name on the hub or a path. For the
    /// reader's information.
    pub base_model_name_or_path: Option<String>,
    /// Which biases were trained and are in the file.
    pub bias: TrainBias,
    /// Settings of the initial value `corda`. Of no effect on a trained adapter.
    pub corda_config: Value,
    /// What the adapter does to an embedding acts on the head that shares its weight, too.
    pub ensure_weight_tying: bool,
    /// Settings of the initial value `eva`. Of no effect on a trained adapter.
    pub eva_config: Value,
    /// Layers without an adapter, whatever the targets say.
    pub exclude_modules: Option<Targets>,
    /// Whether the base layers hold their weight as (in, out); PEFT writes the value of the last
    /// layer. A model's layers know their layout: to a model this is only information.
    pub fan_in_fan_out: bool,
    /// True in a saved adapter.
    pub inference_mode: bool,
    /// How the adapter started.
    pub init_lora_weights: InitWeights,
    /// KaSA; kept, not run.
    pub kasa_config: Value,
    /// Layers that the model has several times; kept, not run.
    pub layer_replication: Value,
    /// Names of the lists whose numbers [`layers_to_transform`](Self::layers_to_transform) means.
    pub layers_pattern: Option<OneOrMany<String>>,
    /// Numbers of the layers with an adapter.
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// Settings of the initial value `loftq`. This crate writes here how the base was quantised.
    pub loftq_config: Value,
    /// Numerator of the scaling.
    #[serde(serialize_with = "write::number")]
    pub lora_alpha: f64,
    /// B has a bias of its own.
    pub lora_bias: bool,
    /// Dropout in training.
    pub lora_dropout: f64,
    /// Settings of the initial value `lora_ga`. Of no effect on a trained adapter.
    pub lora_ga_config: Value,
    /// Layers of Megatron; kept, not run.
    pub megatron_config: Value,
    /// Name of Megatron's Python module: of no effect.
    pub megatron_core: Value,
    /// Modules that were trained in full and are in the file.
    pub modules_to_save: Option<Vec<String>>,
    /// MonteCLoRA; kept, not run.
    pub monteclora_config: Value,
    pub(in crate::peft) peft_type: &'static str,
    /// The version of PEFT that wrote the file.
    pub peft_version: Option<String>,
    /// Size of QALoRA's groups.
    pub qalora_group_size: usize,
    /// Rank.
    pub r: usize,
    /// Ranks by pattern, see [`LoraConfig::rank_pattern`](crate::LoraConfig::rank_pattern).
    pub rank_pattern: IndexMap<String, usize>,
    /// The base model's revision: for the reader's information.
    pub revision: Option<String>,
    /// Layers with an adapter.
    pub target_modules: Option<Targets>,
    /// Bare parameters with an adapter.
    pub target_parameters: Option<Vec<String>>,
    /// What the model is used for.
    pub task_type: Option<TaskType>,
    /// Rows of embeddings that were trained and are in the file.
    pub trainable_token_indices: Option<TokenIndices>,
    /// BD-LoRA; kept, not run.
    pub use_bdlora: Value,
    /// The size of each output's weights is learned apart from their direction (DoRA).
    pub use_dora: bool,
    /// QALoRA; kept, not run.
    pub use_qalora: bool,
    /// Scale by alpha / √r.
    pub use_rslora: bool,
    /// VeLoRA; kept, not run.
    pub velora_config: Value,
    /// Keys that PEFT 0.21 does not know: of trainers, or of a later PEFT. They are not written.
    #[serde(skip)]
    pub unknown: Map<String, Value>,
}

impl AdapterConfig {
    /// Reads `adapter_config.json` of a directory.
    ///
    /// # Errors
    /// If the file cannot be read, is no JSON object, or has a key twice; if a value has a wrong
    /// type. All problems are listed.
    pub fn read(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        Self::parse(dir, &files::read_config(dir)?)
    }

    /// The configuration of a directory with this text.
    pub(in crate::peft) fn parse(dir: &Path, json: &[u8]) -> Result<Self> {
        Self::from_text(json).map_err(|problems| Error::File {
            path: dir.join(CONFIG_FILE),
            problems,
        })
    }

    /// The configuration of this text, or its problems.
    pub(in crate::peft) fn from_text(json: &[u8]) -> Result<Self, Vec<String>> {
        parse::parse(json)
    }

    /// How the file's version of PEFT reads the weights of experts.
    pub(in crate::peft) fn experts_layout(&self) -> Layout {
        let version = self.peft_version.as_deref();
        version.map_or(Layout::Unknown, Layout::of_version)
    }

    /// What to tell of keys that are not known and are switched on.
    pub(in crate::peft) fn unknown_note(&self) -> Option<String> {
        let on = self
            .unknown
            .iter()
            .filter(|(_, value)| !parse::is_off(value));
        let on: Vec<String> = on
            .map(|(key, value)| format!("`{}` is {}", shorten(key), parse::show(value)))
            .collect();
        (!on.is_empty()).then(|| {
            format!(
                "{CONFIG_FILE} has settings that are not known and have no effect here: {}",
                on.join(", ")
            )
        })
    }

    /// Multiplies every layer's scaling.
    pub(in crate::peft) fn weigh(&mut self, weight: f64) {
        self.lora_alpha *= weight;
        self.alpha_pattern
            .values_mut()
            .for_each(|alpha| *alpha *= weight);
    }

    /// PEFT's defaults.
    pub(in crate::peft) fn new() -> Self {
        Self {
            alora_invocation_tokens: Value::Null,
            alpha_pattern: IndexMap::new(),
            arrow_config: Value::Null,
            auto_mapping: Value::Null,
            base_model_name_or_path: None,
            bias: TrainBias::None,
            corda_config: Value::Null,
            ensure_weight_tying: false,
            eva_config: Value::Null,
            exclude_modules: None,
            fan_in_fan_out: false,
            inference_mode: true,
            init_lora_weights: InitWeights::Flag(true),
            kasa_config: Value::Null,
            layer_replication: Value::Null,
            layers_pattern: None,
            layers_to_transform: None,
            loftq_config: json!({}),
            lora_alpha: 8.0,
            lora_bias: false,
            lora_dropout: 0.0,
            lora_ga_config: Value::Null,
            megatron_config: Value::Null,
            megatron_core: json!("megatron.core"),
            modules_to_save: None,
            monteclora_config: Value::Null,
            peft_type: "LORA",
            peft_version: None,
            qalora_group_size: 16,
            r: 8,
            rank_pattern: IndexMap::new(),
            revision: None,
            target_modules: None,
            target_parameters: None,
            task_type: None,
            trainable_token_indices: None,
            use_bdlora: Value::Null,
            use_dora: false,
            use_qalora: false,
            use_rslora: false,
            velora_config: Value::Null,
            unknown: Map::new(),
        }
    }

    /// The settings that are true or false, by key.
    pub(in crate::peft) fn flags_mut(&mut self) -> [(&'static str, &mut bool); 7] {
        [
            ("ensure_weight_tying", &mut self.ensure_weight_tying),
            ("fan_in_fan_out", &mut self.fan_in_fan_out),
            ("inference_mode", &mut self.inference_mode),
            ("lora_bias", &mut self.lora_bias),
            ("use_dora", &mut self.use_dora),
            ("use_qalora", &mut self.use_qalora),
            ("use_rslora", &mut self.use_rslora),
        ]
    }

    /// The flags that say which parts an adapter has beside A and B.
    pub(in crate::peft) fn parts_mut(&mut self) -> [(&'static str, Part, &mut bool); 2] {
        [
            ("use_dora", Part::Magnitude, &mut self.use_dora),
            ("lora_bias", Part::Bias, &mut self.lora_bias),
        ]
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// If a number is not finite.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        write::to_vec(self).map_err(|error| Error::Config(vec![error]))
    }
}

/// PEFT's `init_lora_weights`, as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum InitWeights {
    /// True for PEFT's default, false for random values of both A and B.
    Flag(bool),
    /// A name: `gaussian`, `pissa`, `pissa_niter_4`, `olora`, ..
    Name(String),
}

impl InitWeights {
    /// Whether training started from a residual base, so that the adapter fits only that base:
    /// `pissa`, `olora`, `corda`, `lora_ga`, `loftq`. An adapter that PEFT converted on saving says
    /// `true` instead.
    pub fn changes_base(&self) -> bool {
        match self {
            Self::Flag(_) => false,
            Self::Name(name) => Init::from_name(name).is_some_and(Init::changes_base),
        }
    }
}

/// A value that may stand alone or in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// Alone.
    One(T),
    /// A list.
    Many(Vec<T>),
}

impl<T: Clone> OneOrMany<T> {
    /// As a list.
    pub fn to_vec(&self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one.clone()],
            Self::Many(many) => many.clone(),
        }
    }
}

/// PEFT's `trainable_token_indices`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TokenIndices {
    /// Rows of the model's input embedding, `embed_tokens`.
    Input(Vec<u32>),
    /// Rows by the embedding's name.
    Modules(IndexMap<String, Vec<u32>>),
}

impl TokenIndices {
    /// Rows by the embedding's name.
    pub fn to_modules(&self) -> IndexMap<String, Vec<u32>> {
        match self {
            Self::Input(rows) => IndexMap::from([("embed_tokens".into(), rows.clone())]),
            Self::Modules(modules) => modules.clone(),
        }
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
    pub(in crate::peft) fn from_name(name: &str) -> Option<Self> {
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
    pub(in crate::peft) fn heads(self) -> &'static [&'static str] {
        match self {
            Self::SeqCls | Self::TokenCls => &["classifier", "score"],
            Self::QuestionAns => &["qa_outputs"],
            _ => &[],
        }
    }
}

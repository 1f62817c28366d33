//! [`LoraConfig`]: what to adapt, with which rank, and what else to train.

use super::init_options::quantiser;
use super::naming::Naming;
use super::{CordaConfig, EvaConfig, Init, LoftqConfig, LoraGaConfig, Settings, Targets};
use crate::{Error, Result};
use candle_core::quantized::GgmlDType;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// Which layers get an adapter, its size, and what else is trained.
///
/// Defaults are those of PEFT's `LoraConfig`. [`target_modules`] chooses the layers. Where it is
/// not set, the model's `#[lora(rank)]` attributes do.
///
/// In JSON every key starts with `lora_` (`lora_rank`, `lora_alpha`, ..), so that the settings can
/// share one object with the model's own configuration, see [`WithLora`](crate::WithLora).
///
/// ```
/// use lora::{LoraConfig, TrainBias};
///
/// let config = LoraConfig::new(4)
///     .alpha(8.0)
///     .target_modules(["q_proj", "v_proj"])
///     .train_bias(TrainBias::LoraOnly)
///     .seed(0);
/// assert_eq!(config.rank, 4);
/// ```
///
/// [`target_modules`]: LoraConfig::target_modules
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LoraConfig {
    /// Rank r of the update, at least 1.
    #[serde(rename = "lora_rank")]
    pub rank: usize,
    /// Numerator of the scaling s = alpha / r. In JSON the default is 8 whatever the rank, as in
    /// PEFT. [`new`](Self::new) sets alpha to the rank.
    #[serde(rename = "lora_alpha")]
    pub alpha: f64,
    /// Probability in `0.0..=1.0` that an input of the low-rank branch is dropped in training. It
    /// has no effect on embeddings. Bare weights refuse a dropout. [`seed_dropout`](crate::seed_dropout)
    /// makes it repeatable.
    #[serde(rename = "lora_dropout")]
    pub dropout: f64,
    /// Layers to adapt. With `None` the model's `#[lora(rank)]` attributes choose. A pattern that
    /// matches no layer, or a layer that takes no adapter, is an error. So is a pattern without
    /// effect in the settings below.
    #[serde(
        rename = "lora_target_modules",
        skip_serializing_if = "Option::is_none"
    )]
    pub target_modules: Option<Targets>,
    /// Layers not to adapt, even if other settings or attributes choose them.
    #[serde(
        rename = "lora_exclude_modules",
        skip_serializing_if = "Option::is_none"
    )]
    pub exclude_modules: Option<Targets>,
    /// Modules trained in full and saved with the adapter, beside those marked
    /// `#[lora(trainable)]`: paths, or their dot-aligned ends. Such a module takes no low-rank
    /// update. If another module shares its weight, the adapter trains a copy, as in PEFT;
    /// [`ensure_weight_tying`](Self::ensure_weight_tying) keeps the two together.
    #[serde(rename = "lora_modules_to_save", skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Ranks by pattern. A key is a regular expression for a dot-aligned end of a layer's path. The
    /// first key that matches wins. A key that never wins is an error.
    #[serde(
        rename = "lora_rank_pattern",
        skip_serializing_if = "IndexMap::is_empty"
    )]
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas by pattern, as [`rank_pattern`](Self::rank_pattern).
    #[serde(
        rename = "lora_alpha_pattern",
        skip_serializing_if = "IndexMap::is_empty"
    )]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Which biases are trained.
    #[serde(rename = "lora_train_bias")]
    pub train_bias: TrainBias,
    /// Scale by alpha / √r instead of alpha / r (rsLoRA, <https://arxiv.org/abs/2312.03732>).
    #[serde(rename = "lora_use_rslora")]
    pub use_rslora: bool,
    /// Learn the size of each output's weights apart from their direction (DoRA,
    /// <https://arxiv.org/abs/2402.09353>). Not for bare weights.
    #[serde(rename = "lora_use_dora")]
    pub use_dora: bool,
    /// Give B a trained bias b: the update is s·(B·A·x + b). Embeddings and bare weights take none,
    /// nor does DoRA. An adapter with such a bias cannot be merged into a layer without a bias.
    #[serde(rename = "lora_bias")]
    pub lora_bias: bool,
    /// Adapt only the layers with these numbers; an empty list adapts all. A layer's number is the
    /// first number in its path that follows two names (`model.layers.3.q_proj`), or the number
    /// behind a name of [`layers_pattern`](Self::layers_pattern). A target given by its whole path
    /// is adapted in any case. Needs [`target_modules`](Self::target_modules) as a list.
    #[serde(
        rename = "lora_layers_to_transform",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub layers_to_transform: Vec<usize>,
    /// Names of the lists that [`layers_to_transform`](Self::layers_to_transform) counts in:
    /// `layers` for `model.layers.3.q_proj`. Each name is a regular expression.
    #[serde(rename = "lora_layers_pattern", skip_serializing_if = "Vec::is_empty")]
    pub layers_pattern: Vec<String>,
    /// Rows to train of embeddings, and of linear layers with an output for each token such as an
    /// `lm_head`, by the layer's path or its dot-aligned end. Such a layer can neither be a target nor
    /// be trained in full. A head that shares an embedding's weight sees the embedding's trained rows.
    #[serde(
        rename = "lora_trainable_token_indices",
        skip_serializing_if = "IndexMap::is_empty"
    )]
    pub trainable_token_indices: IndexMap<String, Vec<u32>>,
    /// Bare weights to adapt, such as experts in one tensor: paths of
    /// [`Weight`](crate::layers::Weight) fields, or their dot-aligned ends. Where neither this nor
    /// [`target_modules`](Self::target_modules) is set, the model's attributes decide. `fc.weight` of a
    /// [`Linear`](candle_nn::Linear) `fc` means the layer: it is adapted as by
    /// [`target_modules`](Self::target_modules).
    #[serde(
        rename = "lora_target_parameters",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub target_parameters: Vec<String>,
    /// Makes the adapter of an embedding act on the head that shares its weight, too. So does an
    /// embedding that is trained in full. Without such a head the setting is an error.
    #[serde(rename = "lora_ensure_weight_tying")]
    pub ensure_weight_tying: bool,
    /// Initial values of the adapters. Some depend on data, see
    /// [`calibrate`](crate::LoraModel::calibrate).
    #[serde(rename = "lora_init")]
    pub init: Init,
    /// Settings of [`Init::Eva`].
    #[serde(rename = "lora_eva_config", skip_serializing_if = "is_default")]
    pub eva_config: EvaConfig,
    /// Settings of [`Init::Corda`].
    #[serde(rename = "lora_corda_config", skip_serializing_if = "is_default")]
    pub corda_config: CordaConfig,
    /// Settings of [`Init::LoraGa`].
    #[serde(rename = "lora_ga_config", skip_serializing_if = "is_default")]
    pub lora_ga_config: LoraGaConfig,
    /// Settings of [`Init::Loftq`].
    #[serde(rename = "lora_loftq_config", skip_serializing_if = "is_default")]
    pub loftq_config: LoftqConfig,
    /// Parts of the model that keep no inner values: the backward pass computes the values anew,
    /// which takes less memory and more time. Names or a regular expression for the paths of
    /// [`Recompute`](crate::layers::Recompute) parts.
    #[serde(rename = "lora_recompute", skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Targets>,
    /// The base is quantised to this type as it is converted: QLoRA,
    /// <https://arxiv.org/abs/2305.14314>. Without
    /// [`quantize_modules`](Self::quantize_modules) these are all `Linear` layers but the one that gives
    /// a language model's scores (`lm_head`), those that share an embedding's weight, and those that are
    /// trained in full. The base model keeps its own weights: drop it to free their memory. In JSON the
    /// type's name in lower case: `"q4_0"`, `"q4k"`.
    #[serde(
        rename = "lora_quantize",
        with = "quantiser::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub quantize: Option<GgmlDType>,
    /// The layers that [`quantize`](Self::quantize) quantises: names, or a regular expression.
    #[serde(
        rename = "lora_quantize_modules",
        skip_serializing_if = "Option::is_none"
    )]
    pub quantize_modules: Option<Targets>,
    /// Seed of the initial values. The same seed gives the same adapters on every device. Without a
    /// seed, adapters differ from run to run. What training draws has a seed of its own:
    /// [`seed_dropout`](crate::seed_dropout).
    #[serde(rename = "lora_seed", skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How the paths of the file that these settings come from differ from the model's.
    #[serde(skip)]
    pub(crate) naming: Naming,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self::new(8)
    }
}

impl LoraConfig {
    /// A configuration with this rank, with alpha = rank and all else at PEFT's defaults.
    ///
    /// The conversion of a model checks the rank.
    pub fn new(rank: usize) -> Self {
        Self {
            rank,
            alpha: rank as f64,
            dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            modules_to_save: Vec::new(),
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            train_bias: TrainBias::None,
            use_rslora: false,
            use_dora: false,
            lora_bias: false,
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
            trainable_token_indices: IndexMap::new(),
            target_parameters: Vec::new(),
            ensure_weight_tying: false,
            init: Init::Default,
            eva_config: EvaConfig::default(),
            corda_config: CordaConfig::default(),
            lora_ga_config: LoraGaConfig::default(),
            loftq_config: LoftqConfig::default(),
            recompute: None,
            quantize: None,
            quantize_modules: None,
            seed: None,
            naming: Naming::default(),
        }
    }

    /// Sets [`alpha`](Self::alpha).
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }

    /// Sets [`dropout`](Self::dropout).
    pub fn dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// Sets [`target_modules`](Self::target_modules): a list of names or a regular expression.
    pub fn target_modules(mut self, targets: impl Into<Targets>) -> Self {
        self.target_modules = Some(targets.into());
        self
    }

    /// Sets [`exclude_modules`](Self::exclude_modules): a list of names or a regular expression.
    pub fn exclude_modules(mut self, targets: impl Into<Targets>) -> Self {
        self.exclude_modules = Some(targets.into());
        self
    }

    /// Sets [`modules_to_save`](Self::modules_to_save).
    pub fn modules_to_save<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.modules_to_save = names.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an entry to [`rank_pattern`](Self::rank_pattern).
    pub fn rank_pattern(mut self, pattern: impl Into<String>, rank: usize) -> Self {
        self.rank_pattern.insert(pattern.into(), rank);
        self
    }

    /// Adds an entry to [`alpha_pattern`](Self::alpha_pattern).
    pub fn alpha_pattern(mut self, pattern: impl Into<String>, alpha: f64) -> Self {
        self.alpha_pattern.insert(pattern.into(), alpha);
        self
    }

    /// Sets [`train_bias`](Self::train_bias).
    pub fn train_bias(mut self, train_bias: TrainBias) -> Self {
        self.train_bias = train_bias;
        self
    }

    /// Sets [`use_rslora`](Self::use_rslora).
    pub fn use_rslora(mut self, use_rslora: bool) -> Self {
        self.use_rslora = use_rslora;
        self
    }

    /// Sets [`use_dora`](Self::use_dora).
    pub fn use_dora(mut self, use_dora: bool) -> Self {
        self.use_dora = use_dora;
        self
    }

    /// Sets [`lora_bias`](Self::lora_bias).
    pub fn lora_bias(mut self, lora_bias: bool) -> Self {
        self.lora_bias = lora_bias;
        self
    }

    /// Sets [`layers_to_transform`](Self::layers_to_transform).
    pub fn layers_to_transform(mut self, numbers: impl IntoIterator<Item = usize>) -> Self {
        self.layers_to_transform = numbers.into_iter().collect();
        self
    }

    /// Sets [`layers_pattern`](Self::layers_pattern).
    pub fn layers_pattern<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.layers_pattern = names.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an entry to [`trainable_token_indices`](Self::trainable_token_indices).
    pub fn trainable_token_indices(
        mut self,
        embedding: impl Into<String>,
        indices: impl IntoIterator<Item = u32>,
    ) -> Self {
        let indices = indices.into_iter().collect();
        self.trainable_token_indices
            .insert(embedding.into(), indices);
        self
    }

    /// Sets [`target_parameters`](Self::target_parameters).
    pub fn target_parameters<S: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Self {
        self.target_parameters = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`ensure_weight_tying`](Self::ensure_weight_tying).
    pub fn ensure_weight_tying(mut self, ensure_weight_tying: bool) -> Self {
        self.ensure_weight_tying = ensure_weight_tying;
        self
    }

    /// Sets [`init`](Self::init).
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// Sets [`eva_config`](Self::eva_config).
    pub fn eva_config(mut self, eva_config: EvaConfig) -> Self {
        self.eva_config = eva_config;
        self
    }

    /// Sets [`corda_config`](Self::corda_config).
    pub fn corda_config(mut self, corda_config: CordaConfig) -> Self {
        self.corda_config = corda_config;
        self
    }

    /// Sets [`lora_ga_config`](Self::lora_ga_config).
    pub fn lora_ga_config(mut self, lora_ga_config: LoraGaConfig) -> Self {
        self.lora_ga_config = lora_ga_config;
        self
    }

    /// Sets [`loftq_config`](Self::loftq_config).
    pub fn loftq_config(mut self, loftq_config: LoftqConfig) -> Self {
        self.loftq_config = loftq_config;
        self
    }

    /// Sets [`recompute`](Self::recompute).
    pub fn recompute(mut self, parts: impl Into<Targets>) -> Self {
        self.recompute = Some(parts.into());
        self
    }

    /// Sets [`quantize`](Self::quantize): each `Linear` of the base becomes one in GGML's blocks.
    ///
    /// ```
    /// use candle_core::quantized::GgmlDType;
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    /// use lora::{LoraConfig, LoraModel};
    ///
    /// let base = Linear::new(Tensor::ones((4, 64), DType::F32, &Device::Cpu)?, None);
    /// let model = base.to_lora(&LoraConfig::new(2).quantize(GgmlDType::Q4_0))?;
    /// let blocks = model.adapters().blocks().unwrap();
    /// assert_eq!(blocks.storage_size_in_bytes(), 4 * 64 / 32 * 18);
    /// # Ok::<(), lora::Error>(())
    /// ```
    pub fn quantize(mut self, dtype: GgmlDType) -> Self {
        self.quantize = Some(dtype);
        self
    }

    /// Sets [`quantize_modules`](Self::quantize_modules).
    pub fn quantize_modules(mut self, modules: impl Into<Targets>) -> Self {
        self.quantize_modules = Some(modules.into());
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The scaling of an adapter of this rank and alpha: alpha / r, or alpha / √r with
    /// [`use_rslora`](Self::use_rslora).
    pub fn scaling(&self, rank: usize, alpha: f64) -> f64 {
        Settings::new(rank, alpha, self.use_rslora, self.dropout).scaling
    }

    /// Checks the values that can be checked without a model.
    ///
    /// # Errors
    /// Lists a rank of 0, an alpha that is not finite, a dropout outside `0.0..=1.0`, an empty name
    /// in `modules_to_save`, `layers_pattern` without `layers_to_transform`, `layers_to_transform`
    /// with a regular expression of targets, `lora_bias` with `use_dora`, and settings of the
    /// initial values outside their range. The conversion of a model checks the patterns against
    /// the model.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        check(self.rank > 0, "rank is 0: it must be at least 1".into());
        check(
            self.alpha.is_finite(),
            format!("alpha is {}: it must be finite", self.alpha),
        );
        check(
            (0.0..=1.0).contains(&self.dropout),
            format!("dropout is {}: it must be in 0.0..=1.0", self.dropout),
        );
        for (pattern, &rank) in &self.rank_pattern {
            check(
                rank > 0,
                format!("rank_pattern `{pattern}` is 0: it must be at least 1"),
            );
        }
        for (pattern, alpha) in &self.alpha_pattern {
            check(
                alpha.is_finite(),
                format!("alpha_pattern `{pattern}` is {alpha}: it must be finite"),
            );
        }
        let by_number = !self.layers_to_transform.is_empty();
        check(
            by_number || self.layers_pattern.is_empty(),
            "layers_pattern has no effect without layers_to_transform".into(),
        );
        check(
            !by_number || !matches!(self.target_modules, Some(Targets::Regex(_))),
            "layers_to_transform needs a list of target_modules, not a regular expression".into(),
        );
        check(
            !(self.lora_bias && self.use_dora),
            "lora_bias and use_dora exclude each other, as in PEFT: choose one".into(),
        );
        check(
            !self.modules_to_save.iter().any(|name| name.is_empty()),
            "modules_to_save has an empty name".into(),
        );
        check(
            self.quantize.is_some() || self.quantize_modules.is_none(),
            "quantize_modules has no effect without quantize".into(),
        );
        check(
            self.quantize
                .is_none_or(|dtype| quantiser::name(dtype).is_some()),
            format!(
                "quantize: {:?} is not a quantisation: take one of {}",
                self.quantize.unwrap_or(GgmlDType::F32),
                quantiser::names()
            ),
        );
        if let (Init::Loftq, Some(dtype)) = (self.init, self.quantize) {
            self.loftq_config.check_base(dtype, &mut problems);
        }
        self.eva_config.check(&mut problems);
        self.lora_ga_config.check(&mut problems);
        self.loftq_config.check(&mut problems);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Error::Config(problems))
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Which biases are trained, PEFT's `bias`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainBias {
    /// No bias.
    #[default]
    None,
    /// The biases of the layers that have an adapter.
    LoraOnly,
    /// Every bias of the model, those of norms and heads too.
    All,
}

impl TrainBias {
    /// True if the bias of a layer is trained, by whether the layer has an adapter.
    pub(crate) fn trains(self, has_adapter: bool) -> bool {
        match self {
            Self::None => false,
            Self::LoraOnly => has_adapter,
            Self::All => true,
        }
    }
}

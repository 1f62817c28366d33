//! Decoders: language models that read a text from left to right.
//!
//! One implementation for the families of Llama, Mistral, Qwen2, Qwen3, SmolLM2, SmolLM3, Gemma,
//! Gemma 2, Gemma 3 (text), Phi-3, OLMo2, Granite, Mixtral and Qwen3-MoE: their differences are in
//! [`DecoderConfig`]. Names and numbers are those of Hugging Face's transformers, whose checkpoints
//! load as they are, and PEFT's adapters for them. See [`auto`](super::auto).

mod attention;
mod block;
mod cache;
mod config;
mod context;
mod experts;
mod gguf;
mod loss;
mod mlp;
mod norm;
mod padding;
mod rope;
mod source;

pub use cache::Cache;
pub use config::{
    Biases, DecoderConfig, ExpertsConfig, LayerConfig, NormPlacement, QkNorm, Rope, RopeScaling,
};
pub use gguf::from_gguf;

use super::generate::{Decode, last_position};
use super::{Architecture, Extra, Options, Variant};
use crate::LoraModel;
use crate::layers::{QEmbedding, QLinear, Recompute};
use block::Block;
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::{Module, VarBuilder};
use context::Context;
use norm::Norm;
use padding::Padding;
use source::{Source, linear};

/// A language model that predicts the next token.
///
/// `#[lora(rank)]` marks `q_proj` and `v_proj` (in Phi-3 `qkv_proj`) of every layer: PEFT's default.
/// Paths are the checkpoint's, such as `model.layers.0.self_attn.q_proj`; each expert of a mixture has
/// layers of its own. PEFT's adapters for transformers 5, where experts are joined, are split when they
/// are read.
/// [`LoraConfig::recompute`](crate::LoraConfig::recompute) takes the layers, `model.layers.0`: in
/// training their inner values are computed anew in the backward pass.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::models::decoder::{Cache, Decoder, DecoderConfig};
/// use lora::models::{self, Options, Weights};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let config: DecoderConfig = serde_json::from_str(
///     r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64,
///         "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}"#,
/// ).unwrap();
/// let created = models::build::<Decoder>(&config, Weights::Random(0), &Options::new())?;
/// let mut model = created.model.to_lora(&LoraConfig::new(2))?;
///
/// // Two texts, the second padded in front.
/// let ids = Tensor::new(&[[7u32, 3, 9, 1], [0, 0, 5, 2]], &Device::Cpu)?;
/// let mask = Tensor::new(&[[1u8, 1, 1, 1], [0, 0, 1, 1]], &Device::Cpu)?;
/// let logits = model.forward(&ids, Some(&mask))?;
/// assert_eq!(logits.dims(), [2, 4, 50]);
///
/// // The same step by step: the cache holds what was computed before.
/// model.eval();
/// let mut cache = Cache::new(&config);
/// let (start, end) = (ids.narrow(1, 0, 3)?, ids.narrow(1, 3, 1)?);
/// model.forward_cached(&start, Some(&mask.narrow(1, 0, 3)?), &mut cache)?;
/// let last = model.forward_cached(&end, None, &mut cache)?;
/// assert_eq!((last.dims(), cache.len()), ([2, 1, 50].as_slice(), 4));
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug, LoraModel)]
pub struct Decoder {
    #[lora(config)]
    config: DecoderConfig,
    model: Stack,
    lm_head: Option<QLinear>,
}

/// What stands before the head.
#[derive(Clone, Debug, LoraModel)]
struct Stack {
    embed_tokens: QEmbedding,
    layers: Vec<Recompute<Block>>,
    norm: Norm,
}

impl Decoder {
    /// A model with the weights of `vb`, under the names of transformers. A head that shares the
    /// embedding's weight asks for no weight of its own.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        Self::of(config, Source::of(vb))
    }

    fn of(config: &DecoderConfig, from: Source) -> Result<Self> {
        let (vocabulary, width) = (config.vocab_size, config.hidden_size);
        let model = Stack::new(config, from.pp("model"))?;
        let lm_head = || match config.tie_word_embeddings {
            true => Ok(QLinear::tied(&model.embed_tokens)),
            false => linear(width, vocabulary, false, from.pp("lm_head")),
        };
        let lm_head = config.has_head.then(lm_head).transpose()?;
        Ok(Self {
            config: config.clone(),
            model,
            lm_head,
        })
    }
}

impl Stack {
    fn new(config: &DecoderConfig, from: Source) -> Result<Self> {
        let (vocabulary, width) = (config.vocab_size, config.hidden_size);
        let layers = config.layers.iter().enumerate().map(|(index, layer)| {
            Block::new(config, layer, from.pp("layers").pp(index)).map(Recompute::new)
        });
        Ok(Self {
            embed_tokens: from.pp("embed_tokens").embedding(vocabulary, width)?,
            layers: layers.collect::<Result<_>>()?,
            norm: Norm::new(width, config, from.pp("norm"))?,
        })
    }
}

#[lora::forward(also(QLinear))]
impl Decoder {
    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The layer that makes logits of hidden states, before they are scaled and capped: see
    /// [`logits`](Self::logits).
    pub fn lm_head(&self) -> Option<&QLinear> {
        self.lm_head.as_ref()
    }

    /// The logits of the next token at each position, (batch, time, vocab_size), for ids (batch,
    /// time), u32 or other integers.
    ///
    /// `mask` is (batch, time), of any dtype: 1 for a token, 0 for padding, which no token sees and
    /// which does not count in positions. It may stand on either side. The logits at padding mean
    /// nothing. Where several texts are packed in a row, the mask holds the number of each token's text
    /// instead, from 1, as [`data::pack`](crate::data::pack) gives it: a token then sees its own text
    /// alone, and positions begin anew with each.
    ///
    /// # Errors
    /// If the ids are no integers below `vocab_size`, the mask does not fit, or the model has no head.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.logits(&self.hidden_states(ids, mask, None)?)
    }

    /// As [`forward`](Self::forward), for ids that follow those which the cache holds. The mask is
    /// about the new ids alone. The cache then holds these, too.
    ///
    /// # Errors
    /// As `forward`, and if the cache is of another batch or model.
    pub fn forward_cached(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        self.logits(&self.hidden_states(ids, mask, Some(cache))?)
    }

    /// What the head makes logits of: the last layer's output, normalised, (batch, time,
    /// hidden_size).
    ///
    /// # Errors
    /// As [`forward_cached`](Self::forward_cached).
    pub fn hidden_states(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let (batch, time) = match *ids.dims() {
            [batch, time] if ids.dtype().is_int() && batch * time > 0 => (batch, time),
            _ => bail!(
                "the ids must be integers of shape (batch, time), they are {:?} of shape {:?}",
                ids.dtype(),
                ids.dims()
            ),
        };
        let held = cache.as_ref().map(|cache| &cache.padding);
        let padding = held
            .unwrap_or(&Padding::default())
            .with(batch, time, mask)?;
        // In candle the largest number of a dtype stands for no row. In i64 no token has it.
        let ids = ids.to_dtype(DType::I64)?.contiguous()?;
        let xs = ids.apply(&self.model.embed_tokens)?;
        let xs = match self.config.embedding_multiplier {
            1.0 => xs,
            factor => (xs * factor)?,
        };
        let context = Context::new(&self.config, &padding, time, xs.dtype(), xs.device())?;
        match cache {
            Some(cache) => {
                let hidden = self.model.forward_cached(xs, &context, cache)?;
                cache.padding = padding;
                Ok(hidden)
            }
            None => self.model.forward(xs, &context),
        }
    }

    /// The logits of hidden states, (.., hidden_size) to (.., vocab_size).
    ///
    /// # Errors
    /// If the shape does not fit, or the model has no head.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let Some(lm_head) = &self.lm_head else {
            bail!(
                "the model has no head for the next token: its hidden_states() are what it computes"
            );
        };
        let logits = hidden.apply(lm_head)?;
        let logits = match self.config.logits_scaling {
            1.0 => logits,
            divisor => (logits / divisor)?,
        };
        match self.config.final_logit_softcapping {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }
}

#[lora::forward]
impl Stack {
    fn forward(&self, mut xs: Tensor, context: &Context) -> Result<Tensor> {
        for layer in &self.layers {
            xs = layer.forward_with(&xs, context, |layer, xs, context| {
                layer.forward(xs, context, None)
            })?;
        }
        self.norm.forward(&xs)
    }

    fn forward_cached(
        &self,
        mut xs: Tensor,
        context: &Context,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        if cache.layers.len() != self.layers.len() {
            bail!(
                "the cache is for {} layers, the model has {}",
                cache.layers.len(),
                self.layers.len()
            );
        }
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            xs = layer.forward(&xs, context, Some(cache))?;
        }
        self.norm.forward(&xs)
    }
}

#[lora::forward]
impl Decode for Decoder {
    type Cache = Cache;

    fn new_cache(&self) -> Cache {
        Cache::new(&self.config)
    }

    fn decode(&self, ids: &Tensor, mask: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let hidden = self.hidden_states(ids, Some(mask), Some(cache))?;
        self.logits(&last_position(&hidden)?)
    }

    fn device(&self) -> Device {
        self.model.norm.device().clone()
    }
}

impl Architecture for Decoder {
    type Config = DecoderConfig;
    const CLASSIFIER: &'static str = "lm_head";
    const BODY: Option<&'static str> = Some("model");

    fn variants() -> &'static [Variant<DecoderConfig>] {
        &[]
    }

    /// The classes are the tokens. There are no images, so that `in_chans` has no meaning.
    fn with_options(config: &DecoderConfig, options: &Options) -> DecoderConfig {
        DecoderConfig {
            vocab_size: options.num_classes.unwrap_or(config.vocab_size),
            ..config.clone()
        }
    }

    fn build(config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        Self::new(config, vb)
    }

    fn build_quantised(config: &DecoderConfig, vb: VarBuilder, dtype: GgmlDType) -> Result<Self> {
        Self::of(config, Source::quantised(vb, dtype))
    }

    fn extra(config: &DecoderConfig, name: &str) -> Extra {
        match name {
            "lm_head.weight" if config.tie_word_embeddings => {
                Extra::CopyOf("model.embed_tokens.weight")
            }
            // Older versions saved what they compute from the configuration.
            _ if name.ends_with("rotary_emb.inv_freq") => Extra::Harmless,
            _ => Extra::Unknown,
        }
    }
}

//! What a decoder looks like.

mod families;
mod parse;
mod rope;

pub use rope::{Rope, RopeScaling};

use candle_nn::Activation;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The architecture of a [`Decoder`](super::Decoder).
///
/// It is read from a `config.json` of the Hugging Face hub, with transformers' defaults for each
/// `model_type`: `llama` (which SmolLM2 has, too), `mistral`, `qwen2`, `qwen3`, `smollm3`, `gemma`,
/// `gemma2`, `gemma3_text`, `phi3`, `olmo2`, `granite`, `mixtral` and `qwen3_moe`. A setting that is
/// not supported and would change the result is an error.
///
/// ```
/// use lora::models::decoder::DecoderConfig;
///
/// let config: DecoderConfig = serde_json::from_str(
///     r#"{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}"#,
/// )?;
/// assert_eq!((config.head_dim, config.layers.len()), (16, 2));
/// let wrong = r#"{"model_type": "llama", "hidden_act": "quick_gelu"}"#;
/// let error = serde_json::from_str::<DecoderConfig>(wrong).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "`hidden_act` is \"quick_gelu\": supported are silu, gelu, gelu_pytorch_tanh, relu"
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
#[non_exhaustive]
pub struct DecoderConfig {
    /// The family, for example `llama`.
    pub model_type: String,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width within each MLP.
    pub intermediate_size: usize,
    /// Query heads of each layer.
    pub num_attention_heads: usize,
    /// Key and value heads of each layer; they divide the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The length of sequence that the model is made for. Longer ones are not refused.
    pub max_position_embeddings: usize,
    /// What the norms add to the mean square.
    pub rms_norm_eps: f64,
    /// The activation of the MLPs.
    pub hidden_act: Activation,
    /// There is a head for the next token. A model whose class is `LlamaModel` or the like has none.
    pub has_head: bool,
    /// The head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// What differs from layer to layer.
    pub layers: Vec<LayerConfig>,
    /// The rotary embeddings that the layers choose from.
    pub ropes: Vec<Rope>,
    /// Which linear layers have a bias.
    pub biases: Biases,
    /// Query, key and value are one layer, `qkv_proj`; gate and up are one, `gate_up_proj`.
    pub joined: bool,
    /// Where the norms of a layer stand.
    pub norms: NormPlacement,
    /// The norms multiply by their weight + 1.
    pub norms_add_one: bool,
    /// Norms of the queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// The mixtures of experts, of the layers that have one.
    pub experts: Option<ExpertsConfig>,
    /// Factor of the embeddings.
    pub embedding_multiplier: f64,
    /// Factor of what a layer's attention and MLP add.
    pub residual_multiplier: f64,
    /// Factor of the attention's scores.
    pub attention_multiplier: f64,
    /// Divisor of the logits.
    pub logits_scaling: f64,
    /// Scores s of the attention become c·tanh(s / c).
    pub attn_logit_softcapping: Option<f64>,
    /// Logits s become c·tanh(s / c).
    pub final_logit_softcapping: Option<f64>,
    /// The dropout of the attention's weights in the training of a LoRA model.
    pub attention_dropout: f64,
    /// Settings of the file that have no effect here: other dropouts, and keys that the family does not
    /// have in transformers either.
    pub without_effect: Vec<String>,
}

/// What differs between the layers of a [`DecoderConfig`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerConfig {
    /// How many positions a query sees, itself among them; all if `None`.
    pub window: Option<usize>,
    /// Which of [`DecoderConfig::ropes`] turns queries and keys; none does in a NoPE layer.
    pub rope: Option<usize>,
    /// The MLP is a mixture of experts.
    pub experts: bool,
}

/// Which linear layers of a [`DecoderConfig`] have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Biases {
    /// Those of queries, keys and values.
    pub qkv: bool,
    /// The attention's output.
    pub output: bool,
    /// Those of the MLPs.
    pub mlp: bool,
}

/// Where the norms of a layer stand, by their names in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormPlacement {
    /// Before attention (`input_layernorm`) and MLP (`post_attention_layernorm`).
    Before,
    /// Behind attention (`post_attention_layernorm`) and MLP (`post_feedforward_layernorm`).
    Behind,
    /// Before and behind both, with `pre_feedforward_layernorm` before the MLP.
    Around,
}

/// Norms of the queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QkNorm {
    /// Over each head, with one weight for all heads.
    Head,
    /// Over all heads together.
    Width,
}

/// The mixtures of experts of a [`DecoderConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpertsConfig {
    /// Number of experts.
    pub count: usize,
    /// Experts of each token.
    pub per_token: usize,
    /// Width within an expert.
    pub intermediate_size: usize,
    /// The weights of a token's experts are made to sum to 1.
    pub norm_topk_prob: bool,
    /// The names of Mixtral: `block_sparse_moe`, and `w1`, `w3`, `w2` for gate, up and down.
    pub mixtral_names: bool,
}

impl DecoderConfig {
    /// The width of all query heads together.
    pub(super) fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// The width of all key heads together.
    pub(super) fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

impl TryFrom<Map<String, Value>> for DecoderConfig {
    type Error = String;

    fn try_from(map: Map<String, Value>) -> Result<Self, String> {
        Self::parse(&map).map_err(|problems| problems.join("\n"))
    }
}

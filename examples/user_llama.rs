//! Llama as a user of the crate writes it: candle layers, the derive, and the ops that have a gradient.
//! Nothing is fused by hand.
//!
//! Parameter names are those of a checkpoint on the hub, so that PEFT's adapters fit. The families that
//! differ from Llama are left to [`lora::models::decoder`].

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::{Embedding, Linear, Module, RmsNorm, VarBuilder, linear_no_bias, rms_norm};
use lora::models::decoder::{Decoder, DecoderConfig};
use lora::models::{Architecture, Options, Variant};
use lora::{LoraModel, ops};

/// A language model that predicts the next token.
#[derive(Clone, Debug, LoraModel)]
pub struct Llama {
    model: Stack,
    lm_head: Linear,
}

#[derive(Clone, Debug, LoraModel)]
struct Stack {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    #[lora(skip)]
    tables: (Tensor, Tensor),
}

#[derive(Clone, Debug, LoraModel)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

#[derive(Clone, Debug, LoraModel)]
struct Attention {
    #[lora(rank)]
    q_proj: Linear,
    k_proj: Linear,
    #[lora(rank)]
    v_proj: Linear,
    o_proj: Linear,
    head_dim: usize,
}

#[derive(Clone, Debug, LoraModel)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

#[lora::forward]
impl Llama {
    /// The logits, (batch, time, vocabulary), of ids (batch, time).
    ///
    /// # Errors
    /// If an id is outside of the vocabulary, or the text is too long.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut xs = ids.apply(&self.model.embed_tokens)?;
        let (cos, sin) = &self.model.tables;
        let time = ids.dim(1)?;
        let tables = (cos.i(..time)?, sin.i(..time)?);
        for layer in &self.model.layers {
            xs = layer.forward(&xs, &tables)?;
        }
        xs.apply(&self.model.norm)?.apply(&self.lm_head)
    }
}

#[lora::forward]
impl Block {
    fn forward(&self, xs: &Tensor, tables: &(Tensor, Tensor)) -> Result<Tensor> {
        let ys = xs.apply(&self.input_layernorm)?;
        let xs = (xs + self.self_attn.forward(&ys, tables)?)?;
        let ys = xs.apply(&self.post_attention_layernorm)?.apply(&self.mlp)?;
        xs + ys
    }
}

#[lora::forward]
impl Attention {
    fn forward(&self, xs: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
        let (batch, time, _) = xs.dims3()?;
        let heads = |xs: Tensor| {
            xs.reshape((batch, time, (), self.head_dim))?
                .transpose(1, 2)
        };
        let q = heads(xs.apply(&self.q_proj)?)?;
        let k = heads(xs.apply(&self.k_proj)?)?;
        let v = heads(xs.apply(&self.v_proj)?)?;
        let (q, k) = (ops::rope(&q, cos, sin)?, ops::rope(&k, cos, sin)?);
        let scale = (self.head_dim as f32).powf(-0.5);
        let ys = ops::sdpa(&q, &k, &v, None, true, scale, 1.0)?;
        ys.transpose(1, 2)?.flatten_from(2)?.apply(&self.o_proj)
    }
}

#[lora::forward]
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let gate = ops::silu(&xs.apply(&self.gate_proj)?)?;
        (gate * xs.apply(&self.up_proj)?)?.apply(&self.down_proj)
    }
}

impl Llama {
    /// A model with the weights of `vb`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let of_model = vb.pp("model");
        let embed_tokens =
            candle_nn::embedding(config.vocab_size, width, of_model.pp("embed_tokens"))?;
        let lm_head = match config.tie_word_embeddings {
            true => Linear::new(embed_tokens.embeddings().clone(), None),
            false => linear_no_bias(width, config.vocab_size, vb.pp("lm_head"))?,
        };
        let layers = (0..config.layers.len())
            .map(|index| Block::new(config, of_model.pp("layers").pp(index)));
        let model = Stack {
            embed_tokens,
            layers: layers.collect::<Result<_>>()?,
            norm: rms_norm(width, config.rms_norm_eps, of_model.pp("norm"))?,
            tables: tables(config, vb.device())?,
        };
        Ok(Self { model, lm_head })
    }
}

impl Block {
    fn new(config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        let (width, inner, head) = (
            config.hidden_size,
            config.intermediate_size,
            config.head_dim,
        );
        let queries = config.num_attention_heads * head;
        let keys = config.num_key_value_heads * head;
        let norm = |name: &str| rms_norm(width, config.rms_norm_eps, vb.pp(name));
        let (attention, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention {
                q_proj: linear_no_bias(width, queries, attention.pp("q_proj"))?,
                k_proj: linear_no_bias(width, keys, attention.pp("k_proj"))?,
                v_proj: linear_no_bias(width, keys, attention.pp("v_proj"))?,
                o_proj: linear_no_bias(queries, width, attention.pp("o_proj"))?,
                head_dim: head,
            },
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp {
                gate_proj: linear_no_bias(width, inner, mlp.pp("gate_proj"))?,
                up_proj: linear_no_bias(width, inner, mlp.pp("up_proj"))?,
                down_proj: linear_no_bias(inner, width, mlp.pp("down_proj"))?,
            },
        })
    }
}

/// The cosines and sines of each position's angles, (positions, head_dim / 2) each.
fn tables(config: &DecoderConfig, device: &Device) -> Result<(Tensor, Tensor)> {
    let theta = config.ropes.first().map_or(10_000.0, |rope| rope.theta);
    let dim = config.head_dim;
    let frequency = |i: usize| theta.powf(-((2 * i) as f64) / dim as f64) as f32;
    let frequencies = Tensor::from_iter((0..dim / 2).map(frequency), device)?;
    let positions = Tensor::arange(0, config.max_position_embeddings as u32, device)?;
    let positions = positions.to_dtype(DType::F32)?.unsqueeze(1)?;
    let angles = positions.matmul(&frequencies.unsqueeze(0)?)?;
    Ok((angles.cos()?, angles.sin()?))
}

impl Architecture for Llama {
    type Config = DecoderConfig;
    const CLASSIFIER: &'static str = "lm_head";

    fn variants() -> &'static [Variant<DecoderConfig>] {
        &[]
    }

    fn with_options(config: &DecoderConfig, options: &Options) -> DecoderConfig {
        Decoder::with_options(config, options)
    }

    fn build(config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        Self::new(config, vb)
    }
}

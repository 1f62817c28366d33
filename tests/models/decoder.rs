//! A language model with rotary tables, a cache changed by `&mut self`, grouped-query attention and
//! a head tied to the embedding.

use super::life::{Run, adapted, embedding, linear_no_bias, live, weight};
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Embedding, Linear, Module, RmsNorm};
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// The rotary tables, (time, head_dim / 2).
#[derive(Clone, Debug)]
struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    fn new(head_dim: usize, length: usize) -> Result<Self> {
        let half = head_dim / 2;
        let frequency = |i: usize| 1f32 / 100f32.powf(i as f32 / half as f32);
        let angles = (0..length).flat_map(|t| (0..half).map(move |i| t as f32 * frequency(i)));
        let angles = Tensor::from_vec(angles.collect(), (length, half), &Device::Cpu)?;
        Ok(Self {
            cos: angles.cos()?,
            sin: angles.sin()?,
        })
    }

    fn apply(&self, xs: &Tensor, position: usize) -> Result<Tensor> {
        let time = xs.dim(2)?;
        let cos = self.cos.narrow(0, position, time)?;
        let sin = self.sin.narrow(0, position, time)?;
        ops::rope(xs, &cos, &sin)
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Attention {
    #[lora(config)]
    config: DecoderConfig,
    #[lora(rank)]
    q_proj: Linear,
    k_proj: Linear,
    #[lora(rank)]
    v_proj: Linear,
    o_proj: Linear,
    #[lora(skip)]
    rotary: Rotary,
    #[lora(skip)]
    cache: Option<(Tensor, Tensor)>,
}

#[lora::forward]
impl Attention {
    fn heads(&self, xs: Tensor, heads: usize) -> Result<Tensor> {
        let (batch, time, _) = xs.dims3()?;
        let xs = xs.reshape((batch, time, heads, self.config.head_dim))?;
        xs.transpose(1, 2)?.contiguous()
    }

    /// Each key and value head serves several query heads.
    fn repeat(&self, xs: Tensor) -> Result<Tensor> {
        let (batch, heads, time, dim) = xs.dims4()?;
        let times = self.config.heads / self.config.kv_heads;
        let xs = xs.unsqueeze(2)?.expand((batch, heads, times, time, dim))?;
        xs.reshape((batch, heads * times, time, dim))
    }

    fn forward(&mut self, xs: &Tensor, position: usize) -> Result<Tensor> {
        let (batch, time, _) = xs.dims3()?;
        let (heads, kv_heads) = (self.config.heads, self.config.kv_heads);
        let q = self.heads(xs.apply(&self.q_proj)?, heads)?;
        let k = self.heads(xs.apply(&self.k_proj)?, kv_heads)?;
        let v = self.heads(xs.apply(&self.v_proj)?, kv_heads)?;
        let (q, k) = (
            self.rotary.apply(&q, position)?,
            self.rotary.apply(&k, position)?,
        );
        let (k, v) = match &self.cache {
            Some((k0, v0)) if position > 0 => {
                (Tensor::cat(&[k0, &k], 2)?, Tensor::cat(&[v0, &v], 2)?)
            }
            _ => (k, v),
        };
        self.cache = Some((k.clone(), v.clone()));
        let (k, v) = (self.repeat(k)?, self.repeat(v)?);
        let scale = (self.config.head_dim as f64).powf(-0.5);
        let scores = (q.matmul(&k.t()?)? * scale)?;
        let scores = scores.broadcast_add(&causal(time, k.dim(2)?)?)?;
        let ys = ops::softmax_last_dim(&scores)?.matmul(&v)?;
        let ys = ys
            .transpose(1, 2)?
            .reshape((batch, time, heads * self.config.head_dim))?;
        ys.apply(&self.o_proj)
    }
}

fn causal(time: usize, length: usize) -> Result<Tensor> {
    let mask = (0..time).flat_map(|t| {
        let last = length - time + t;
        (0..length).map(move |j| if j > last { f32::NEG_INFINITY } else { 0.0 })
    });
    Tensor::from_vec(mask.collect(), (time, length), &Device::Cpu)
}

#[derive(Clone, Debug, LoraModel)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    #[lora(rank = 3, alpha = 6.0)]
    down_proj: Linear,
}

#[lora::forward]
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let gate = ops::silu(&xs.apply(&self.gate_proj)?)?;
        (gate * xs.apply(&self.up_proj)?)?.apply(&self.down_proj)
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Layer {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

#[lora::forward]
impl Layer {
    fn forward(&mut self, xs: &Tensor, position: usize) -> Result<Tensor> {
        let ys = self
            .self_attn
            .forward(&xs.apply(&self.input_layernorm)?, position)?;
        let xs = (xs + ys)?;
        let ys = xs.apply(&self.post_attention_layernorm)?.apply(&self.mlp)?;
        xs + ys
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Decoder {
    #[lora(config = LoraDecoderConfig)]
    config: DecoderConfig,
    #[lora(name = "model.embed_tokens")]
    embed: Embedding,
    #[lora(name = "model.layers")]
    layers: Vec<Layer>,
    #[lora(name = "model.norm")]
    norm: RmsNorm,
    lm_head: Linear,
}

#[lora::forward]
impl Decoder {
    fn forward(&mut self, ids: &Tensor, position: usize) -> Result<Tensor> {
        let mut xs = ids.apply(&self.embed)?;
        for layer in &mut self.layers {
            xs = layer.forward(&xs, position)?;
        }
        xs.apply(&self.norm)?.apply(&self.lm_head)
    }
}

#[lora::forward]
impl Run for Decoder {
    fn run(&mut self) -> Result<Tensor> {
        self.forward(&ids(&[[1, 5, 2, 7, 3], [4, 4, 0, 10, 9]])?, 0)
    }
}

fn ids<const N: usize>(ids: &[[u32; N]; 2]) -> Result<Tensor> {
    Tensor::new(ids, &Device::Cpu)
}

fn decoder() -> Decoder {
    let config = DecoderConfig {
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
    };
    let layer = |seed: usize| Layer {
        self_attn: Attention {
            config: config.clone(),
            q_proj: linear_no_bias(12, 16, seed),
            k_proj: linear_no_bias(12, 8, seed + 1),
            v_proj: linear_no_bias(12, 8, seed + 2),
            o_proj: linear_no_bias(16, 12, seed + 3),
            rotary: Rotary::new(4, 16).unwrap(),
            cache: None,
        },
        mlp: Mlp {
            gate_proj: linear_no_bias(12, 20, seed + 4),
            up_proj: linear_no_bias(12, 20, seed + 5),
            down_proj: linear_no_bias(20, 12, seed + 6),
        },
        input_layernorm: RmsNorm::new(weight(12, seed + 7), 1e-6),
        post_attention_layernorm: RmsNorm::new(weight(12, seed + 8), 1e-6),
    };
    let embed = embedding(11, 12, 1);
    Decoder {
        config: config.clone(),
        lm_head: Linear::new(embed.embeddings().clone(), None),
        embed,
        layers: vec![layer(10), layer(30)],
        norm: RmsNorm::new(weight(12, 2), 1e-6),
    }
}

#[test]
fn projections() {
    let model = live(decoder(), &LoraConfig::new(2));
    assert_eq!(adapted(&model).len(), 6);
    assert_eq!(adapted(&model)[0], "model.layers.0.self_attn.q_proj");
    assert_eq!(model.config.lora().rank, 2);
    let config: LoraDecoderConfig = model.config.clone();
    assert_eq!(config.base(), &decoder().config);
    // The head is tied to the embedding and counts once.
    let head = model.summary().rows.pop().unwrap();
    assert_eq!(
        (head.total, head.tied_to.as_deref()),
        (0, Some("model.embed_tokens.weight"))
    );
    assert_eq!(
        model.layers[0]
            .mlp
            .down_proj
            .adapters()
            .iter()
            .next()
            .unwrap()
            .settings()
            .scaling,
        2.0
    );
}

#[test]
fn embedding_and_everything_else() {
    let config = LoraConfig::new(2).target_modules(r".*(proj|embed_tokens)");
    let model = live(decoder(), &config);
    assert_eq!(adapted(&model).len(), 1 + 2 * 7);
}

#[test]
fn the_cache_works_in_the_lora_model() {
    let mut model = decoder().to_lora(&LoraConfig::new(2).seed(1)).unwrap();
    lora_tests::fill_adapters(&model);
    model.eval();
    let whole = model.run().unwrap();
    let first = model
        .forward(&ids(&[[1, 5, 2], [4, 4, 0]]).unwrap(), 0)
        .unwrap();
    let second = model.forward(&ids(&[[7], [10]]).unwrap(), 3).unwrap();
    let third = model.forward(&ids(&[[3], [9]]).unwrap(), 4).unwrap();
    let parts = Tensor::cat(&[first, second, third], 1).unwrap();
    lora_tests::assert_close("cached", &parts, &whole, 1e-5);
    assert_eq!(whole.dim(D::Minus1).unwrap(), 11);
    assert_eq!(whole.dtype(), DType::F32);
}

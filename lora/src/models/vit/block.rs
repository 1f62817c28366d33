//! A layer: attention and MLP, each behind a norm and beside a shortcut.

use super::config::{VitAct, VitConfig, VitNames};
use super::layer_norm;
use crate::LoraModel;
use crate::blocks::Mlp;
use crate::models::parts::{self, linear};
use crate::ops::{self, Attention};
use candle_core::{D, Result, Tensor};
use candle_nn::{Activation, Init, LayerNorm, Linear, Module, VarBuilder};

/// A layer of a vision transformer.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Block {
    #[lora(flatten)]
    layers: Layers,
    #[lora(flatten)]
    act: Act,
    heads: usize,
}

/// The layers under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum Layers {
    Timm {
        #[lora(rank, name = "attn.qkv")]
        qkv: Linear,
        #[lora(name = "attn.proj")]
        output: Linear,
        #[lora(name = "mlp.fc1")]
        up: Linear,
        #[lora(name = "mlp.fc2")]
        down: Linear,
        #[lora(name = "norm1")]
        attention_norm: LayerNorm,
        #[lora(name = "norm2")]
        mlp_norm: LayerNorm,
        #[lora(name = "ls1.gamma")]
        attention_scale: Option<Tensor>,
        #[lora(name = "ls2.gamma")]
        mlp_scale: Option<Tensor>,
    },
    Vit {
        #[lora(rank, name = "attention.attention.query")]
        q: Linear,
        #[lora(name = "attention.attention.key")]
        k: Linear,
        #[lora(rank, name = "attention.attention.value")]
        v: Linear,
        #[lora(name = "attention.output.dense")]
        output: Linear,
        #[lora(name = "intermediate.dense")]
        up: Linear,
        #[lora(name = "output.dense")]
        down: Linear,
        #[lora(name = "layernorm_before")]
        attention_norm: LayerNorm,
        #[lora(name = "layernorm_after")]
        mlp_norm: LayerNorm,
    },
    Dinov2 {
        #[lora(rank, name = "attention.attention.query")]
        q: Linear,
        #[lora(name = "attention.attention.key")]
        k: Linear,
        #[lora(rank, name = "attention.attention.value")]
        v: Linear,
        #[lora(name = "attention.output.dense")]
        output: Linear,
        #[lora(name = "mlp.fc1")]
        up: Linear,
        #[lora(name = "mlp.fc2")]
        down: Linear,
        #[lora(name = "norm1")]
        attention_norm: LayerNorm,
        #[lora(name = "norm2")]
        mlp_norm: LayerNorm,
        #[lora(name = "layer_scale1.lambda1")]
        attention_scale: Option<Tensor>,
        #[lora(name = "layer_scale2.lambda1")]
        mlp_scale: Option<Tensor>,
    },
    Clip {
        #[lora(rank, name = "self_attn.q_proj")]
        q: Linear,
        #[lora(name = "self_attn.k_proj")]
        k: Linear,
        #[lora(rank, name = "self_attn.v_proj")]
        v: Linear,
        #[lora(name = "self_attn.out_proj")]
        output: Linear,
        #[lora(name = "mlp.fc1")]
        up: Linear,
        #[lora(name = "mlp.fc2")]
        down: Linear,
        #[lora(name = "layer_norm1")]
        attention_norm: LayerNorm,
        #[lora(name = "layer_norm2")]
        mlp_norm: LayerNorm,
    },
}

/// The activation of the MLP.
#[derive(Clone, Debug, LoraModel)]
pub(super) enum Act {
    Plain(#[lora(flatten)] Activation),
    QuickGelu,
}

impl Act {
    pub(super) fn new(act: VitAct) -> Self {
        match act {
            VitAct::Plain(act) => Self::Plain(act),
            VitAct::QuickGelu => Self::QuickGelu,
        }
    }
}

impl Block {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            layers: Layers::new(config, vb)?,
            act: Act::new(config.hidden_act),
            heads: config.num_attention_heads,
        })
    }
}

impl Layers {
    fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let input = |name: &str| linear(width, width, config.qkv_bias, vb.pp(name));
        let square = |name: &str| linear(width, width, true, vb.pp(name));
        let norm = |name: &str| layer_norm(config, vb.pp(name));
        let scale = |name: &str| {
            let scale = config.layer_scale.map(Init::Const);
            scale
                .map(|start| vb.get_with_hints(width, name, start))
                .transpose()
        };
        Ok(match config.names {
            VitNames::Timm => Self::Timm {
                qkv: linear(width, 3 * width, config.qkv_bias, vb.pp("attn.qkv"))?,
                output: square("attn.proj")?,
                up: linear(width, inner, true, vb.pp("mlp.fc1"))?,
                down: linear(inner, width, true, vb.pp("mlp.fc2"))?,
                attention_norm: norm("norm1")?,
                mlp_norm: norm("norm2")?,
                attention_scale: scale("ls1.gamma")?,
                mlp_scale: scale("ls2.gamma")?,
            },
            VitNames::Vit | VitNames::Deit => Self::Vit {
                q: input("attention.attention.query")?,
                k: input("attention.attention.key")?,
                v: input("attention.attention.value")?,
                output: square("attention.output.dense")?,
                up: linear(width, inner, true, vb.pp("intermediate.dense"))?,
                down: linear(inner, width, true, vb.pp("output.dense"))?,
                attention_norm: norm("layernorm_before")?,
                mlp_norm: norm("layernorm_after")?,
            },
            VitNames::Dinov2 => Self::Dinov2 {
                q: input("attention.attention.query")?,
                k: input("attention.attention.key")?,
                v: input("attention.attention.value")?,
                output: square("attention.output.dense")?,
                up: linear(width, inner, true, vb.pp("mlp.fc1"))?,
                down: linear(inner, width, true, vb.pp("mlp.fc2"))?,
                attention_norm: norm("norm1")?,
                mlp_norm: norm("norm2")?,
                attention_scale: scale("layer_scale1.lambda1")?,
                mlp_scale: scale("layer_scale2.lambda1")?,
            },
            VitNames::Clip | VitNames::Siglip => Self::Clip {
                q: input("self_attn.q_proj")?,
                k: input("self_attn.k_proj")?,
                v: input("self_attn.v_proj")?,
                output: square("self_attn.out_proj")?,
                up: linear(width, inner, true, vb.pp("mlp.fc1"))?,
                down: linear(inner, width, true, vb.pp("mlp.fc2"))?,
                attention_norm: norm("layer_norm1")?,
                mlp_norm: norm("layer_norm2")?,
            },
        })
    }
}

#[lora::forward]
impl Layers {
    /// Queries, keys and values, each (batch, tokens, width).
    fn inputs(&self, xs: &Tensor) -> Result<[Tensor; 3]> {
        match self {
            Self::Timm { qkv, .. } => {
                let (all, width) = (xs.apply(qkv)?, xs.dim(D::Minus1)?);
                let part = |index: usize| all.narrow(2, index * width, width);
                Ok([part(0)?, part(1)?, part(2)?])
            }
            Self::Vit { q, k, v, .. }
            | Self::Dinov2 { q, k, v, .. }
            | Self::Clip { q, k, v, .. } => Ok([xs.apply(q)?, xs.apply(k)?, xs.apply(v)?]),
        }
    }

    /// The layer behind the attention, those of the MLP, the norms.
    fn in_order(&self) -> ([&Linear; 3], [&LayerNorm; 2]) {
        match self {
            Self::Timm {
                output,
                up,
                down,
                attention_norm,
                mlp_norm,
                ..
            }
            | Self::Vit {
                output,
                up,
                down,
                attention_norm,
                mlp_norm,
                ..
            }
            | Self::Dinov2 {
                output,
                up,
                down,
                attention_norm,
                mlp_norm,
                ..
            }
            | Self::Clip {
                output,
                up,
                down,
                attention_norm,
                mlp_norm,
                ..
            } => ([output, up, down], [attention_norm, mlp_norm]),
        }
    }

    /// The factors of what attention and MLP add.
    fn scales(&self) -> [Option<&Tensor>; 2] {
        match self {
            Self::Timm {
                attention_scale,
                mlp_scale,
                ..
            }
            | Self::Dinov2 {
                attention_scale,
                mlp_scale,
                ..
            } => [attention_scale.as_ref(), mlp_scale.as_ref()],
            Self::Vit { .. } | Self::Clip { .. } => [None, None],
        }
    }
}

#[lora::forward]
impl Module for Block {
    /// From (batch, tokens, hidden_size) to the same.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ([output, up, down], [attention_norm, mlp_norm]) = self.layers.in_order();
        let [attention_scale, mlp_scale] = self.layers.scales();
        let [q, k, v] = self.layers.inputs(&xs.apply(attention_norm)?)?;
        let ys = attend([&q, &k, &v], self.heads)?.apply(output)?;
        let xs = ops::residual(xs, &ys, attention_scale, 2)?;
        self.act.mlp(&xs, mlp_norm, [up, down], mlp_scale)
    }
}

#[lora::forward]
impl Act {
    /// `xs + scale·down(act(up(norm(xs))))`
    pub(super) fn mlp(
        &self,
        xs: &Tensor,
        norm: &LayerNorm,
        [up, down]: [&Linear; 2],
        scale: Option<&Tensor>,
    ) -> Result<Tensor> {
        match self {
            Self::Plain(act) => {
                let mlp = Mlp::new(up, act, down).norm(norm);
                mlp.gamma(scale).shortcut(xs).forward(xs)
            }
            Self::QuickGelu => {
                // x·σ(1.702·x) is silu(1.702·x) / 1.702.
                let hidden = (xs.apply(norm)?.apply(up)? * 1.702)?;
                let ys = (ops::silu(&hidden)? / 1.702)?.apply(down)?;
                ops::residual(xs, &ys, scale, xs.rank() - 1)
            }
        }
    }
}

/// The attention of queries over all tokens, (batch, tokens, width).
pub(super) fn attend(qkv: [&Tensor; 3], heads: usize) -> Result<Tensor> {
    let [q, k, v] = qkv.map(|xs| parts::heads(xs, heads));
    let (q, k, v) = (q?, k?, v?);
    let attention = Attention::new((q.dim(3)? as f64).powf(-0.5));
    parts::attend(&attention, [&q, &k, &v])
}

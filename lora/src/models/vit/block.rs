//! A layer: attention and MLP, each behind a norm and beside a shortcut.

use super::config::{VitAct, VitConfig, VitDropouts, VitNames};
use super::layer_norm;
use crate::LoraModel;
use crate::blocks::{AsLinear, Attention, Mlp};
use crate::models::parts::linear;
use crate::ops;
use candle_core::{Result, Tensor};
use candle_nn::{Activation, Init, LayerNorm, Linear, VarBuilder};

/// A layer of a vision transformer.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Block {
    #[lora(flatten)]
    layers: Layers,
    #[lora(flatten)]
    act: Act,
    heads: usize,
    #[lora(skip)]
    dropouts: VitDropouts,
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
            dropouts: config.dropouts,
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
    /// The attention of so many heads, without norm and shortcut.
    fn attention(&self, heads: usize) -> Attention<'_> {
        match self {
            Self::Timm { qkv, output, .. } => Attention::joined(qkv, output, heads),
            Self::Vit {
                q, k, v, output, ..
            }
            | Self::Dinov2 {
                q, k, v, output, ..
            }
            | Self::Clip {
                q, k, v, output, ..
            } => Attention::new(q, k, v, output, heads),
        }
    }

    /// Whether a calibration notes what the attention's layers see.
    fn is_observed(&self) -> bool {
        match self {
            Self::Timm { qkv, output, .. } => qkv.is_observed() || output.is_observed(),
            Self::Vit {
                q, k, v, output, ..
            }
            | Self::Dinov2 {
                q, k, v, output, ..
            }
            | Self::Clip {
                q, k, v, output, ..
            } => [q, k, v, output].iter().any(|layer| layer.is_observed()),
        }
    }

    /// Whether a LoRA model is trained.
    fn in_training(&self) -> bool {
        match self {
            Self::Timm { output, .. }
            | Self::Vit { output, .. }
            | Self::Dinov2 { output, .. }
            | Self::Clip { output, .. } => output.in_training(),
        }
    }

    /// The layers of the MLP, the norms.
    fn in_order(&self) -> ([&Linear; 2], [&LayerNorm; 2]) {
        match self {
            Self::Timm {
                up,
                down,
                attention_norm,
                mlp_norm,
                ..
            }
            | Self::Vit {
                up,
                down,
                attention_norm,
                mlp_norm,
                ..
            }
            | Self::Dinov2 {
                up,
                down,
                attention_norm,
                mlp_norm,
                ..
            }
            | Self::Clip {
                up,
                down,
                attention_norm,
                mlp_norm,
                ..
            } => ([up, down], [attention_norm, mlp_norm]),
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
impl Block {
    /// From (batch, tokens, hidden_size) to the same, or to so many first tokens.
    pub(super) fn forward(&self, xs: &Tensor, tokens: Option<usize>) -> Result<Tensor> {
        let ([up, down], [attention_norm, mlp_norm]) = self.layers.in_order();
        let [attention_scale, mlp_scale] = self.layers.scales();
        let dropouts = self.dropouts();
        let head_dim = xs.dim(2)? / self.heads;
        let core = ops::Attention::new((head_dim as f64).powf(-0.5)).dropout(dropouts.attention);
        let attention = self.layers.attention(self.heads).core(core);
        let attention = attention.norm(attention_norm).dropout(dropouts.output);
        let is_observed = up.is_observed() || down.is_observed() || self.layers.is_observed();
        let attention = attention.first(tokens.filter(|_| !is_observed));
        let xs = attention.gamma(attention_scale).shortcut(xs).forward(xs)?;
        let shares = [dropouts.inner, dropouts.mlp];
        self.act.mlp(&xs, mlp_norm, [up, down], mlp_scale, shares)
    }

    /// Whether a LoRA model is trained.
    pub(super) fn in_training(&self) -> bool {
        self.layers.in_training()
    }

    /// What is dropped now.
    fn dropouts(&self) -> VitDropouts {
        match self.in_training() {
            true => self.dropouts,
            false => VitDropouts::default(),
        }
    }
}

#[lora::forward]
impl Act {
    /// `xs + scale·down(act(up(norm(xs))))`, where these shares are dropped in front of `down` and behind.
    pub(super) fn mlp(
        &self,
        xs: &Tensor,
        norm: &LayerNorm,
        [up, down]: [&Linear; 2],
        scale: Option<&Tensor>,
        [inner, behind]: [f64; 2],
    ) -> Result<Tensor> {
        if let (Self::Plain(act), 0.0) = (self, inner) {
            let mlp = Mlp::new(up, act, down).norm(norm).dropout(behind);
            return mlp.gamma(scale).shortcut(xs).forward(xs);
        }
        let hidden = self.activate(&xs.apply(norm)?.apply(up)?)?;
        let ys = ops::dropout(&hidden, inner as f32)?.apply(down)?;
        let ys = ops::dropout(&ys, behind as f32)?;
        ops::residual(xs, &ys, scale, xs.rank() - 1)
    }

    fn activate(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(act) => xs.apply(act),
            // x·σ(1.702·x) is silu(1.702·x) / 1.702.
            Self::QuickGelu => ops::silu(&(xs * 1.702)?)? / 1.702,
        }
    }
}

//! A layer: attention and MLP, each beside a shortcut.

use super::attention::Attention;
use super::config::{DecoderConfig, LayerConfig, NormPlacement};
use super::context::Context;
use super::experts::Experts;
use super::mlp::Mlp;
use super::norm::Norm;
use crate::LoraModel;
use crate::ops::{self, KvCache};
use candle_core::{D, Result, Tensor};
use candle_nn::{Module, VarBuilder};

/// A layer of a decoder.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Block {
    self_attn: Attention,
    #[lora(flatten)]
    feed_forward: FeedForward,
    #[lora(flatten)]
    norms: Norms,
    residual_multiplier: f64,
}

/// The MLP or the experts, under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum FeedForward {
    Mlp { mlp: Mlp },
    Experts { mlp: Experts },
    Mixtral { block_sparse_moe: Experts },
}

/// The norms, under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum Norms {
    Before {
        input_layernorm: Norm,
        post_attention_layernorm: Norm,
    },
    Behind {
        post_attention_layernorm: Norm,
        post_feedforward_layernorm: Norm,
    },
    Around {
        input_layernorm: Norm,
        post_attention_layernorm: Norm,
        pre_feedforward_layernorm: Norm,
        post_feedforward_layernorm: Norm,
    },
}

impl Block {
    pub(super) fn new(config: &DecoderConfig, layer: &LayerConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            self_attn: Attention::new(config, layer, vb.pp("self_attn"))?,
            feed_forward: FeedForward::new(config, layer, &vb)?,
            norms: Norms::new(config, &vb)?,
            residual_multiplier: config.residual_multiplier,
        })
    }
}

impl FeedForward {
    fn new(config: &DecoderConfig, layer: &LayerConfig, vb: &VarBuilder) -> Result<Self> {
        Ok(match config.experts.as_ref().filter(|_| layer.experts) {
            None => Self::Mlp {
                mlp: Mlp::new(config, vb.pp("mlp"))?,
            },
            Some(experts) if experts.mixtral_names => Self::Mixtral {
                block_sparse_moe: Experts::new(config, experts, vb.pp("block_sparse_moe"))?,
            },
            Some(experts) => Self::Experts {
                mlp: Experts::new(config, experts, vb.pp("mlp"))?,
            },
        })
    }
}

impl Norms {
    fn new(config: &DecoderConfig, vb: &VarBuilder) -> Result<Self> {
        let norm = |name: &str| Norm::new(config.hidden_size, config, vb.pp(name));
        Ok(match config.norms {
            NormPlacement::Before => Self::Before {
                input_layernorm: norm("input_layernorm")?,
                post_attention_layernorm: norm("post_attention_layernorm")?,
            },
            NormPlacement::Behind => Self::Behind {
                post_attention_layernorm: norm("post_attention_layernorm")?,
                post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            },
            NormPlacement::Around => Self::Around {
                input_layernorm: norm("input_layernorm")?,
                post_attention_layernorm: norm("post_attention_layernorm")?,
                pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
                post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            },
        })
    }
}

#[lora::forward(also(Norm))]
impl Norms {
    /// The norms before attention, behind it, before the MLP and behind it.
    fn in_order(&self) -> [Option<&Norm>; 4] {
        match self {
            Self::Before {
                input_layernorm,
                post_attention_layernorm,
            } => [
                Some(input_layernorm),
                None,
                Some(post_attention_layernorm),
                None,
            ],
            Self::Behind {
                post_attention_layernorm,
                post_feedforward_layernorm,
            } => [
                None,
                Some(post_attention_layernorm),
                None,
                Some(post_feedforward_layernorm),
            ],
            Self::Around {
                input_layernorm,
                post_attention_layernorm,
                pre_feedforward_layernorm,
                post_feedforward_layernorm,
            } => [
                Some(input_layernorm),
                Some(post_attention_layernorm),
                Some(pre_feedforward_layernorm),
                Some(post_feedforward_layernorm),
            ],
        }
    }
}

#[lora::forward]
impl Module for FeedForward {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mlp { mlp } => mlp.forward(xs),
            Self::Experts { mlp } => mlp.forward(xs),
            Self::Mixtral { block_sparse_moe } => block_sparse_moe.forward(xs),
        }
    }
}

#[lora::forward(also(Norm, Mlp, FeedForward))]
impl Block {
    /// From (batch, time, hidden_size) to the same.
    pub(super) fn forward(
        &self,
        xs: &Tensor,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let [before_attention, behind_attention, before_mlp, behind_mlp] = self.norms.in_order();
        let ys = normed(xs, before_attention)?;
        let ys = self.self_attn.forward(&ys, context, cache)?;
        let xs = self.add(xs, &normed(&ys, behind_attention)?)?;
        if let (FeedForward::Mlp { mlp }, None) = (&self.feed_forward, behind_mlp) {
            return self.with_mlp(&xs, before_mlp, mlp);
        }
        let ys = self.feed_forward.forward(&normed(&xs, before_mlp)?)?;
        self.add(&xs, &normed(&ys, behind_mlp)?)
    }

    /// The half of the layer behind attention as one node: norm, MLP and shortcut.
    fn with_mlp(&self, xs: &Tensor, norm: Option<&Norm>, mlp: &Mlp) -> Result<Tensor> {
        let chain = mlp.chain().shortcut(xs);
        let chain = match norm {
            Some(norm) => chain.norm(norm),
            None => chain,
        };
        let gamma = match self.residual_multiplier {
            1.0 => None,
            factor => {
                let factor = Tensor::full(factor as f32, xs.dim(D::Minus1)?, xs.device())?;
                Some(factor.to_dtype(xs.dtype())?)
            }
        };
        chain.gamma(gamma.as_ref()).forward(xs)
    }

    fn add(&self, xs: &Tensor, ys: &Tensor) -> Result<Tensor> {
        match self.residual_multiplier {
            1.0 => ops::add(xs, ys),
            factor => ops::add(xs, &(ys * factor)?),
        }
    }
}

fn normed(xs: &Tensor, norm: Option<&impl Module>) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(xs),
        None => Ok(xs.clone()),
    }
}

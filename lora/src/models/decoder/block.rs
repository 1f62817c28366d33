//! A layer: attention and MLP, each beside a shortcut.

use super::attention::Attention;
use super::config::{DecoderConfig, LayerConfig, NormPlacement};
use super::context::Context;
use super::experts::Experts;
use super::mlp::Mlp;
use super::norm::Norm;
use super::source::Source;
use crate::LoraModel;
use crate::ops::{self, KvCache};
use candle_core::{D, Result, Tensor};
use candle_nn::Module;

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
    pub(super) fn new(config: &DecoderConfig, layer: &LayerConfig, from: Source) -> Result<Self> {
        Ok(Self {
            self_attn: Attention::new(config, layer, from.pp("self_attn"))?,
            feed_forward: FeedForward::new(config, layer, &from)?,
            norms: Norms::new(config, &from)?,
            residual_multiplier: config.residual_multiplier,
        })
    }
}

impl FeedForward {
    fn new(config: &DecoderConfig, layer: &LayerConfig, from: &Source) -> Result<Self> {
        Ok(match config.experts.as_ref().filter(|_| layer.experts) {
            None => Self::Mlp {
                mlp: Mlp::new(config, from.pp("mlp"))?,
            },
            Some(experts) if experts.mixtral_names => Self::Mixtral {
                block_sparse_moe: Experts::new(config, experts, from.pp("block_sparse_moe"))?,
            },
            Some(experts) => Self::Experts {
                mlp: Experts::new(config, experts, from.pp("mlp"))?,
            },
        })
    }
}

impl Norms {
    fn new(config: &DecoderConfig, from: &Source) -> Result<Self> {
        let norm = |name: &str| Norm::new(config.hidden_size, config, from.pp(name));
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

#[lora::forward(also(Norm, Mlp, FeedForward, Attention))]
impl Block {
    /// From (batch, time, hidden_size) to the same.
    pub(super) fn forward(
        &self,
        xs: &Tensor,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let [before_attention, behind_attention, before_mlp, behind_mlp] = self.norms.in_order();
        let attention = self.self_attn.chain(context);
        let attention = match before_attention {
            Some(norm) => attention.norm(norm),
            None => attention,
        };
        let xs = match behind_attention {
            None => {
                let attention = attention.gamma(self.factor(xs)?.as_ref()).shortcut(xs);
                attention.forward_cached(xs, cache)?
            }
            Some(norm) => {
                let ys = attention.forward_cached(xs, cache)?;
                self.add(xs, &norm.forward(&ys)?)?
            }
        };
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
        chain.gamma(self.factor(xs)?.as_ref()).forward(xs)
    }

    /// The factor of what attention and MLP add, for each channel.
    fn factor(&self, xs: &Tensor) -> Result<Option<Tensor>> {
        match self.residual_multiplier {
            1.0 => Ok(None),
            factor => {
                let factor = Tensor::full(factor as f32, xs.dim(D::Minus1)?, xs.device())?;
                Ok(Some(factor.to_dtype(xs.dtype())?))
            }
        }
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

//! From tokens to one vector, and to logits.

use super::block::Act;
use super::config::{VitConfig, VitNames, VitPool};
use super::layer_norm;
use crate::blocks::AsLinear;
use crate::models::parts::{WEIGHT, linear};
use crate::{LoraModel, ops};
use candle_core::{Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, init};

/// SigLIP's pooling: attention of a learned query to all tokens, and an MLP.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct AttentionPool {
    probe: Tensor,
    #[lora(name = "attention.in_proj_weight")]
    in_weight: Tensor,
    #[lora(name = "attention.in_proj_bias")]
    in_bias: Tensor,
    #[lora(name = "attention.out_proj")]
    output: Linear,
    layernorm: LayerNorm,
    #[lora(name = "mlp.fc1")]
    up: Linear,
    #[lora(name = "mlp.fc2")]
    down: Linear,
    #[lora(flatten)]
    act: Act,
    heads: usize,
}

impl AttentionPool {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let attention = vb.pp("attention");
        Ok(Self {
            probe: vb.get_with_hints((1, 1, width), "probe", WEIGHT)?,
            in_weight: attention.get_with_hints((3 * width, width), "in_proj_weight", WEIGHT)?,
            in_bias: attention.get_with_hints(3 * width, "in_proj_bias", init::ZERO)?,
            output: linear(width, width, true, attention.pp("out_proj"))?,
            layernorm: layer_norm(config, vb.pp("layernorm"))?,
            up: linear(width, inner, true, vb.pp("mlp.fc1"))?,
            down: linear(inner, width, true, vb.pp("mlp.fc2"))?,
            act: Act::new(config.hidden_act),
            heads: config.num_attention_heads,
        })
    }
}

#[lora::forward]
impl Module for AttentionPool {
    /// From (batch, tokens, width) to (batch, width).
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, _, width) = xs.dims3()?;
        let input = |xs: &Tensor, index: usize| {
            let weight = self.in_weight.narrow(0, index * width, width)?;
            let bias = self.in_bias.narrow(0, index * width, width)?;
            ops::linear(xs, &weight, Some(&bias))
        };
        let probe = self.probe.broadcast_as((batch, 1, width))?.contiguous()?;
        let (q, k, v) = (input(&probe, 0)?, input(xs, 1)?, input(xs, 2)?);
        let ys = attend([&q, &k, &v], self.heads)?.apply(&self.output)?;
        let linears = [&self.up, &self.down];
        self.act
            .mlp(&ys, &self.layernorm, linears, None, [0.0; 2])?
            .squeeze(1)
    }
}

/// The attention of queries over all tokens, (batch, tokens, width).
fn attend(qkv: [&Tensor; 3], count: usize) -> Result<Tensor> {
    let heads = |xs: &Tensor| {
        let (batch, tokens, width) = xs.dims3()?;
        let heads = xs.reshape((batch, tokens, count, width / count))?;
        heads.transpose(1, 2)
    };
    let [q, k, v] = qkv.map(heads);
    let (q, k, v) = (q?, k?, v?);
    let attention = ops::Attention::new((q.dim(3)? as f64).powf(-0.5));
    let ys = attention.forward(&q, &k, &v)?;
    ys.transpose(1, 2)?.flatten_from(2)
}

/// The layers that make logits, under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
pub(super) enum Head {
    /// The vector is the result.
    None,
    Timm {
        head: Linear,
        head_dist: Option<Linear>,
    },
    Classifier {
        classifier: Linear,
    },
    Deit {
        cls_classifier: Linear,
        distillation_classifier: Linear,
    },
    Clip {
        visual_projection: Linear,
    },
}

impl Head {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let classes = config.labels.len();
        let width = match config.pool {
            VitPool::ClassAndMean => 2 * config.hidden_size,
            _ => config.hidden_size,
        };
        let layer = |name: &str| linear(width, classes, true, vb.pp(name));
        Ok(match (config.names, config.projection) {
            (VitNames::Clip, Some(outputs)) => Self::Clip {
                visual_projection: linear(width, outputs, false, vb.pp("visual_projection"))?,
            },
            _ if classes == 0 => Self::None,
            (VitNames::Timm, _) => Self::Timm {
                head: layer("head")?,
                head_dist: config
                    .distilled_head
                    .then(|| layer("head_dist"))
                    .transpose()?,
            },
            _ if config.distilled_head => Self::Deit {
                cls_classifier: layer("cls_classifier")?,
                distillation_classifier: layer("distillation_classifier")?,
            },
            _ => Self::Classifier {
                classifier: layer("classifier")?,
            },
        })
    }
}

#[lora::forward]
impl Head {
    /// The logits of the pooled vector, and of the second token's where that has a classifier.
    pub(super) fn forward(
        &self,
        pooled: &Tensor,
        tokens: &Tensor,
        config: &VitConfig,
    ) -> Result<Tensor> {
        let (first, second) = match self {
            Self::None => return Ok(pooled.clone()),
            Self::Timm { head, head_dist } => (head, head_dist.as_ref()),
            Self::Classifier { classifier } => (classifier, None),
            Self::Deit {
                cls_classifier,
                distillation_classifier,
            } => (cls_classifier, Some(distillation_classifier)),
            Self::Clip { visual_projection } => (visual_projection, None),
        };
        let drops = second.is_none() && first.in_training();
        let share = if drops {
            config.dropouts.classifier
        } else {
            0.0
        };
        let pooled = ops::dropout(&pooled.contiguous()?, share as f32)?;
        let logits = pooled.apply(first)?;
        match second {
            Some(second) => {
                let token = tokens.narrow(1, 1, 1)?.squeeze(1)?.contiguous()?;
                (logits + token.apply(second)?)? / 2.0
            }
            None => Ok(logits),
        }
    }
}

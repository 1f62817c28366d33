//! What stands in front of the classifier.

use super::block::Block;
use super::config::{VitConfig, VitNames, VitPool};
use super::embeddings::Embeddings;
use super::head::AttentionPool;
use super::layer_norm;
use crate::LoraModel;
use crate::layers::Recompute;
use candle_core::{Result, Tensor};
use candle_nn::{LayerNorm, Module, VarBuilder};

/// Embeddings, layers and the last norm.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Tower {
    #[lora(flatten)]
    embeddings: Embeddings,
    #[lora(flatten)]
    layers: Layers,
    #[lora(name = "head")]
    pool: Option<AttentionPool>,
}

/// The layers and the norm under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum Layers {
    Timm {
        blocks: Vec<Recompute<Block>>,
        norm: LayerNorm,
    },
    /// Of a model whose norm stands behind the mean.
    TimmMean {
        blocks: Vec<Recompute<Block>>,
        #[lora(name = "fc_norm")]
        norm: LayerNorm,
    },
    Vit {
        #[lora(name = "encoder.layer")]
        blocks: Vec<Recompute<Block>>,
        #[lora(name = "layernorm")]
        norm: LayerNorm,
    },
    Clip {
        #[lora(name = "encoder.layers")]
        blocks: Vec<Recompute<Block>>,
        #[lora(name = "post_layernorm")]
        norm: LayerNorm,
    },
}

impl Tower {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let pool = config.pool == VitPool::Attention;
        let pool = pool.then(|| AttentionPool::new(config, vb.pp("head")));
        Ok(Self {
            embeddings: Embeddings::new(config, vb.clone())?,
            layers: Layers::new(config, vb)?,
            pool: pool.transpose()?,
        })
    }
}

impl Layers {
    fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let blocks = |name: &str| {
            let blocks = 0..config.num_hidden_layers;
            let blocks = blocks.map(|index| Block::new(config, vb.pp(name).pp(index)));
            blocks
                .map(|block| block.map(Recompute::new))
                .collect::<Result<_>>()
        };
        let norm = |name: &str| layer_norm(config, vb.pp(name));
        Ok(match config.names {
            VitNames::Timm if config.pool == VitPool::Mean => Self::TimmMean {
                blocks: blocks("blocks")?,
                norm: norm("fc_norm")?,
            },
            VitNames::Timm => Self::Timm {
                blocks: blocks("blocks")?,
                norm: norm("norm")?,
            },
            VitNames::Vit | VitNames::Deit | VitNames::Dinov2 => Self::Vit {
                blocks: blocks("encoder.layer")?,
                norm: norm("layernorm")?,
            },
            VitNames::Clip | VitNames::Siglip => Self::Clip {
                blocks: blocks("encoder.layers")?,
                norm: norm("post_layernorm")?,
            },
        })
    }
}

#[lora::forward]
impl Tower {
    /// The tokens, (batch, tokens, hidden_size), or so many first ones; normalised unless the norm stands
    /// behind the mean.
    pub(super) fn forward(
        &self,
        images: &Tensor,
        config: &VitConfig,
        tokens: Option<usize>,
    ) -> Result<Tensor> {
        let (Layers::Timm { blocks, norm }
        | Layers::TimmMean { blocks, norm }
        | Layers::Vit { blocks, norm }
        | Layers::Clip { blocks, norm }) = &self.layers;
        let drops = blocks.first().is_some_and(|block| block.in_training());
        let share = if drops {
            config.dropouts.embeddings
        } else {
            0.0
        };
        let mut xs = self.embeddings.forward(images, config, share)?;
        for (index, block) in blocks.iter().enumerate() {
            let tokens = tokens.filter(|_| index + 1 == blocks.len());
            xs =
                block.forward_with(&xs, &tokens, |block, xs, &tokens| block.forward(xs, tokens))?;
        }
        match config.pool {
            VitPool::Mean => Ok(xs),
            _ => norm.forward(&xs),
        }
    }

    /// The vector of each image, (batch, hidden_size) or twice that.
    pub(super) fn pooled(&self, tokens: &Tensor, config: &VitConfig) -> Result<Tensor> {
        let first = tokens.narrow(1, 0, 1)?.squeeze(1)?;
        let mean = || {
            let prefix = config.prefix_tokens();
            tokens.narrow(1, prefix, tokens.dim(1)? - prefix)?.mean(1)
        };
        match (config.pool, &self.layers, &self.pool) {
            (VitPool::Attention, _, Some(pool)) => pool.forward(tokens),
            (VitPool::Mean, Layers::TimmMean { norm, .. }, _) => norm.forward(&mean()?),
            (VitPool::Mean, ..) => mean(),
            (VitPool::ClassAndMean, ..) => Tensor::cat(&[first, mean()?], 1),
            (VitPool::Class | VitPool::Attention, ..) => Ok(first),
        }
    }
}

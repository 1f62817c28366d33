//! BERT's encoder proper: embeddings, layers, pooler.

use super::block::Block;
use super::config::{EncoderConfig, EncoderFamily};
use super::context::Context;
use super::embeddings::Embeddings;
use super::inputs::Inputs;
use crate::LoraModel;
use crate::layers::Recompute;
use crate::models::parts::linear;
use candle_core::{Result, Tensor};
use candle_nn::{Linear, VarBuilder};

/// What BERT, RoBERTa and DistilBERT have in front of a head.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Stack {
    embeddings: Embeddings,
    #[lora(flatten)]
    layers: Layers,
    /// BERT's layer behind the first token.
    #[lora(name = "pooler.dense")]
    pooler: Option<Linear>,
}

/// The layers under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
enum Layers {
    Bert {
        #[lora(name = "encoder.layer")]
        layers: Vec<Recompute<Block>>,
    },
    Distilbert {
        #[lora(name = "transformer.layer")]
        layers: Vec<Recompute<Block>>,
    },
}

impl Stack {
    pub(super) fn new(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let embeddings = Embeddings::new(config, vb.pp("embeddings"))?;
        let blocks = |name: &str| {
            let blocks = 0..config.num_hidden_layers;
            let blocks = blocks.map(|index| Block::new(config, vb.pp(name).pp(index)));
            blocks
                .map(|block| block.map(Recompute::new))
                .collect::<Result<_>>()
        };
        let layers = match config.family {
            EncoderFamily::Distilbert => Layers::Distilbert {
                layers: blocks("transformer.layer")?,
            },
            _ => Layers::Bert {
                layers: blocks("encoder.layer")?,
            },
        };
        let pooler = config
            .has_pooler()
            .then(|| linear(width, width, true, vb.pp("pooler.dense")));
        Ok(Self {
            embeddings,
            layers,
            pooler: pooler.transpose()?,
        })
    }

    /// The weight that a head may share.
    pub(super) fn words(&self) -> &Tensor {
        self.embeddings.words()
    }
}

#[lora::forward]
impl Stack {
    /// The last layer's output, (batch, time, hidden_size), or of the tokens that the head reads.
    pub(super) fn forward(
        &self,
        inputs: &Inputs<'_>,
        config: &EncoderConfig,
        context: &Context,
    ) -> Result<Tensor> {
        let mut xs = self.embeddings.forward(inputs, config, context)?;
        let (Layers::Bert { layers } | Layers::Distilbert { layers }) = &self.layers;
        for (index, layer) in layers.iter().enumerate() {
            let context = context.of_layer(index + 1 == layers.len());
            xs = layer.forward_with(&xs, &context, |layer, xs, context| {
                layer.forward(xs, context)
            })?;
        }
        Ok(xs)
    }

    /// The vector of each text that BERT's head classifies: the pooler's, from the first token's.
    pub(super) fn pooled(&self, first: &Tensor) -> Result<Tensor> {
        match &self.pooler {
            Some(pooler) => first.apply(pooler)?.tanh(),
            None => Ok(first.clone()),
        }
    }
}

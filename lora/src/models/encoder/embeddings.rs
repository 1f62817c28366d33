//! From tokens to vectors.

use super::config::EncoderConfig;
use super::context::Context;
use super::inputs::Inputs;
use super::table;
use crate::LoraModel;
use crate::models::parts::layer_norm;
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::{Embedding, LayerNorm, VarBuilder};

/// The embeddings of tokens, positions and kinds of tokens, summed and normalised.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Option<Embedding>,
    #[lora(name = "LayerNorm")]
    norm: LayerNorm,
}

impl Embeddings {
    pub(super) fn new(config: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let table = |name: &str, rows| table(rows, width, vb.pp(name));
        let types = config.type_vocab_size;
        let types = (types > 0).then(|| table("token_type_embeddings", types));
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            token_type_embeddings: types.transpose()?,
            norm: layer_norm(width, true, config.layer_norm_eps, vb.pp("LayerNorm"))?,
        })
    }

    /// The weight that a head may share.
    pub(super) fn words(&self) -> &Tensor {
        self.word_embeddings.embeddings()
    }
}

#[lora::forward]
impl Embeddings {
    pub(super) fn forward(
        &self,
        inputs: &Inputs<'_>,
        config: &EncoderConfig,
        context: &Context,
    ) -> Result<Tensor> {
        let words = inputs.ids.contiguous()?.apply(&self.word_embeddings)?;
        let positions = inputs.positions(config)?.apply(&self.position_embeddings)?;
        let xs = words.broadcast_add(&positions)?;
        let xs = match (&self.token_type_embeddings, inputs.types) {
            (Some(table), Some(types)) => (xs + types.contiguous()?.apply(table)?)?,
            (Some(table), None) => {
                let zero = Tensor::zeros((1, 1), DType::U32, xs.device())?;
                xs.broadcast_add(&zero.apply(table)?)?
            }
            (None, None) => xs,
            (None, Some(_)) => {
                bail!("this model has no kinds of tokens: leave the token types out")
            }
        };
        context.dropped(&xs.apply(&self.norm)?, config.dropouts.embeddings)
    }
}

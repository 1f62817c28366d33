//! Where the layers get their weights.

use crate::layers::{QEmbedding, QLinear};
use crate::models::parts::{self, WEIGHT};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, bail};
use candle_nn::{Embedding, VarBuilder};
use std::sync::Arc;

/// Reads the weight of a name where a file holds it in blocks.
pub(super) type Blocks<'a> = &'a dyn Fn(&str) -> Result<Option<Arc<QTensor>>>;

/// A place among a model's weights: tensors in full precision, and blocks.
#[derive(Clone)]
pub(super) struct Source<'a> {
    vb: VarBuilder<'a>,
    blocks: Option<Blocks<'a>>,
    /// The type that matrices are quantised to.
    quantise: Option<GgmlDType>,
}

impl<'a> Source<'a> {
    /// Weights in full precision.
    pub(super) fn of(vb: VarBuilder<'a>) -> Self {
        Self {
            vb,
            blocks: None,
            quantise: None,
        }
    }

    /// Blocks where there are some; other weights in full precision.
    pub(super) fn with_blocks(vb: VarBuilder<'a>, blocks: Blocks<'a>) -> Self {
        Self {
            blocks: Some(blocks),
            ..Self::of(vb)
        }
    }

    /// Weights in full precision, of which each matrix is quantised as soon as it is read.
    pub(super) fn quantised(vb: VarBuilder<'a>, dtype: GgmlDType) -> Self {
        Self {
            quantise: Some(dtype),
            ..Self::of(vb)
        }
    }

    pub(super) fn pp(&self, name: impl ToString) -> Self {
        Self {
            vb: self.vb.pp(name),
            ..self.clone()
        }
    }

    pub(super) fn vb(&self) -> &VarBuilder<'a> {
        &self.vb
    }

    /// An embedding with a row for each token.
    pub(super) fn embedding(&self, tokens: usize, width: usize) -> Result<QEmbedding> {
        Ok(match self.find((tokens, width))? {
            Some(blocks) => QEmbedding::new(blocks)?,
            None => {
                let weight = self.vb.get_with_hints((tokens, width), "weight", WEIGHT)?;
                Embedding::new(weight, width).into()
            }
        })
    }

    /// The blocks of the weight here, of this shape.
    fn find(&self, shape: (usize, usize)) -> Result<Option<Arc<QTensor>>> {
        if let Some(dtype) = self.quantise {
            let block = dtype.block_size();
            if !shape.1.is_multiple_of(block) {
                bail!(
                    "quantize: {dtype:?} takes {block} inputs at a time, `{}` has {}: take another type",
                    self.vb.prefix(),
                    shape.1
                );
            }
            let weight = self.vb.get_with_hints(shape, "weight", WEIGHT)?;
            return Ok(Some(Arc::new(QTensor::quantize(&weight, dtype)?)));
        }
        let Some(blocks) = self.blocks else {
            return Ok(None);
        };
        let name = format!("{}.weight", self.vb.prefix());
        let blocks = blocks(&name)?;
        if let Some(blocks) = &blocks
            && blocks.shape().dims() != [shape.0, shape.1]
        {
            bail!(
                "`{name}` is {:?}, the model's is {shape:?}",
                blocks.shape().dims()
            );
        }
        Ok(blocks)
    }
}

/// A linear layer with the weights of this place.
pub(super) fn linear(inputs: usize, outputs: usize, bias: bool, from: Source) -> Result<QLinear> {
    let Some(blocks) = from.find((outputs, inputs))? else {
        return Ok(parts::linear(inputs, outputs, bias, from.vb)?.into());
    };
    let bias = bias.then(|| from.vb.get(outputs, "bias")).transpose()?;
    Ok(QLinear::new(blocks, bias)?)
}

//! The embedding layer.

use crate::adapter::{
    Access, Adapted, Adapters, Form, LayerParts, LayerPartsMut, reading, updates,
};
use crate::config::Kind;
use crate::{
    Builder, Cursor, CursorMut, LoraConfig, LoraLayer, LoraModel, LoraModule, Result, Settings, ops,
};
use candle_core::quantized::QTensor;
use candle_core::{DType, Tensor};
use candle_nn::{Embedding, Module};
use std::sync::Arc;

/// An [`Embedding`] layer with low-rank updates: `y = W[i] + s·(Aᵀ)[i]·Bᵀ`.
///
/// With n rows of size dim: W (n, dim), A (r, n), B (dim, r). Dropout does not apply, as in PEFT.
#[derive(Clone, Debug)]
pub struct LoraEmbedding {
    weight: Tensor,
    hidden_size: usize,
    adapters: Adapters,
}

impl LoraEmbedding {
    /// A layer with one fresh adapter. The base table is shared.
    ///
    /// With a seed, layers of one shape get the same initial values: give each its own.
    ///
    /// # Errors
    /// If the configuration is invalid or its patterns do not match a layer that stands alone.
    pub fn new(base: &Embedding, config: &LoraConfig) -> Result<Self> {
        base.to_lora(config)
    }

    /// The table, (n, dim), with the active adapters in it, for a model whose own code computes
    /// with it. In training the gradient reaches the adapters; their dropout does not act. As training
    /// goes on, the tensor's values follow the adapters, as a parameter's do.
    ///
    /// The layer's own table is [`Adapted::unmerged_weight`]. In a view for mixed batches the rows have
    /// no weight in common: the tensor has no elements, and a warning says why.
    ///
    /// A head that multiplies by this table shares the adapters, as it does in the base model of
    /// [`to_base`](LoraModule::to_base). A head that is to share only the base weight, as in PEFT, is a
    /// `Linear` of its own with the same tensor.
    pub fn embeddings(&self) -> &Tensor {
        reading::weight(self)
    }

    /// An embedding whose table is quantised.
    pub(super) fn quantised(table: &Arc<QTensor>, cx: &mut Builder<'_>) -> Result<Self> {
        let weight = cx.quantised(table, DType::F32)?;
        let mut adapters = cx.adapters();
        adapters.blocks = Some(table.clone());
        cx.layer(Self {
            hidden_size: weight.dim(1)?,
            weight,
            adapters,
        })
    }

    /// The size of a row.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// The layer's adapters.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }
}

impl Module for LoraEmbedding {
    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        if let Some(rows) = self.adapters.mixed_rows() {
            return rows.forward(self, ids);
        }
        let weight = self.adapters.seen(&self.weight);
        ops::Updated {
            bias: None,
            updates: &updates::updates(self)?,
            channels: ids.rank(),
        }
        .run(
            ids,
            |ids, _| {
                let rows = match &self.adapters.blocks {
                    Some(table) => {
                        ops::quantised_embedding(ids, table)?.to_dtype(weight.dtype())?
                    }
                    None => ops::embedding(ids, &weight)?,
                };
                let mut tokens = self.adapters.tokens_to_compute();
                tokens.try_fold(rows, |rows, tokens| tokens.after_lookup(ids, &rows))
            },
            |ids, update| ops::linear(&ops::embedding(ids, &update.a.t()?)?, &update.b, None),
        )
    }
}

impl LoraModel for Embedding {
    type Lora = LoraEmbedding;
    const IS_LAYER: bool = true;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraEmbedding> {
        self.embeddings().dims2()?;
        let layer = LoraEmbedding {
            weight: cx.parameter(self.embeddings()),
            hidden_size: self.hidden_size(),
            adapters: cx.adapters(),
        };
        cx.layer(layer)
    }
}

impl LoraLayer for Embedding {}

impl LoraModule for LoraEmbedding {
    type Base = Embedding;

    fn to_base(&self) -> Result<Embedding> {
        let (weight, _) = self.base_parts()?;
        Ok(Embedding::new(weight, self.hidden_size))
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Adapted for LoraEmbedding {
    fn layer_kind(&self) -> Kind {
        Kind::Embedding
    }

    fn form(&self) -> Form {
        Form::Transposed
    }

    fn parts(&self) -> LayerParts<'_> {
        LayerParts {
            weight: &self.weight,
            bias: None,
            adapters: &self.adapters,
        }
    }

    fn parts_mut(&mut self, _: Access) -> LayerPartsMut<'_> {
        LayerPartsMut {
            weight: &mut self.weight,
            bias: None,
            adapters: self.adapters.changing(),
        }
    }

    fn is_lookup(&self) -> bool {
        true
    }

    fn refuses(&self, _settings: &Settings, config: &LoraConfig) -> Option<String> {
        let bias = config.lora_bias;
        bias.then(|| "an embedding takes no bias on B (lora_bias)".into())
    }
}

//! Layers whose weight is quantised, in GGML's blocks.

use super::{LoraEmbedding, LoraLinear};
use crate::adapter::Adapters;
use crate::ops::{self, Blocks, LinearParts};
use crate::{Builder, Cursor, CursorMut, Error, LoraLayer, LoraModel, LoraModule, Result};
use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Tensor};
use candle_nn::{Embedding, Linear, Module};
use std::sync::Arc;

/// A linear layer whose weight is quantised, y = x·Wᵀ + b: one of a GGUF file. W is (out, in), b (out).
///
/// The layer passes the gradient to its input, as candle's own [`QMatMul`] does not. The product is that
/// of the dequantised weight: panels of the weight are dequantised and multiplied one after the other, so
/// that the weight is never held in full precision. With fewer than 16 rows of Q8_0 or a K type, and where
/// no gradient is wanted, candle's kernels compute the product. They round the inputs to eight bits, as
/// llama.cpp does, and are faster there.
///
/// Its LoRA type is [`LoraQLinear`]. A weight in full precision is taken too, so that a model can hold
/// either. A `Linear` is quantised when it is converted, with
/// [`LoraConfig::quantize`](crate::LoraConfig::quantize).
///
/// ```
/// use candle_core::quantized::{GgmlDType, QTensor};
/// use candle_core::{DType, Device, Module, Tensor};
/// use lora::layers::QLinear;
/// use lora::{LoraConfig, LoraModel, LoraModule};
/// use std::sync::Arc;
///
/// let weight = Tensor::ones((3, 64), DType::F32, &Device::Cpu)?;
/// let weight = Arc::new(QTensor::quantize(&weight, GgmlDType::Q4_0)?);
/// let model = QLinear::new(weight, None)?.to_lora(&LoraConfig::new(2))?;
/// let xs = Tensor::ones((20, 64), DType::F32, &Device::Cpu)?;
/// let loss = model.forward(&xs)?.sqr()?.mean_all()?;
/// model.backward(&loss)?;
/// assert_eq!(model.summary().trainable, 2 * (64 + 3));
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct QLinear {
    weight: QMatMul,
    bias: Option<Tensor>,
}

impl QLinear {
    /// A layer with this weight, (out, in), and bias, (out).
    ///
    /// # Errors
    /// If the weight is not a matrix, or the bias has not one value for each output.
    pub fn new(weight: Arc<QTensor>, bias: Option<Tensor>) -> Result<Self> {
        Self::with(QMatMul::QTensor(weight), bias)
    }

    fn with(weight: QMatMul, bias: Option<Tensor>) -> Result<Self> {
        let (outputs, _) = dims(&weight)?;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.dims() != [outputs]) {
            let message = format!(
                "a bias of shape {:?} does not fit {outputs} outputs",
                bias.dims()
            );
            return Err(Error::layer("", message));
        }
        Ok(Self { weight, bias })
    }

    /// The weight, quantised or in full precision.
    pub fn weight(&self) -> &QMatMul {
        &self.weight
    }

    /// The bias.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The layer whose weight is this table: a language model's head that is tied to its embedding.
    pub fn tied(table: &QEmbedding) -> Self {
        Self {
            weight: table.weight.clone(),
            bias: None,
        }
    }

    /// The layer as the ops read it.
    pub(crate) fn parts(&self) -> candle_core::Result<LinearParts> {
        let (weight, blocks) = match &self.weight {
            QMatMul::QTensor(weight) => {
                let dtype = dtype_of(self.bias.as_ref());
                let stand_in = crate::adapter::quantised::stand_in(weight, dtype)?;
                let (tensor, is_exact) = (weight.clone(), false);
                (stand_in, Some(Blocks { tensor, is_exact }))
            }
            QMatMul::Tensor(weight) => (weight.clone(), None),
            QMatMul::TensorF16(weight) => (weight.to_dtype(dtype_of(self.bias.as_ref()))?, None),
        };
        Ok(LinearParts {
            weight,
            blocks,
            bias: self.bias.clone(),
            updates: Vec::new(),
            detour: None,
        })
    }
}

/// The dtype that a layer with a quantised weight computes in: its bias tells, or it is f32.
fn dtype_of(bias: Option<&Tensor>) -> DType {
    bias.map_or(DType::F32, Tensor::dtype)
}

impl From<Linear> for QLinear {
    /// The same layer, in full precision.
    fn from(linear: Linear) -> Self {
        Self {
            weight: QMatMul::Tensor(linear.weight().clone()),
            bias: linear.bias().cloned(),
        }
    }
}

impl Module for QLinear {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        ops::adapted_linear(xs, &self.parts()?)
    }
}

/// Rows and columns of a weight.
fn dims(weight: &QMatMul) -> Result<(usize, usize)> {
    Ok(match weight {
        QMatMul::QTensor(weight) => weight.shape().dims2()?,
        QMatMul::Tensor(weight) | QMatMul::TensorF16(weight) => weight.dims2()?,
    })
}

/// A quantised embedding, one of a GGUF file: the rows of W, (n, dim). The rows are in f32.
///
/// Its LoRA type is [`LoraQEmbedding`]. A table in full precision is taken too, so that a model can hold
/// either.
#[derive(Clone, Debug)]
pub struct QEmbedding {
    weight: QMatMul,
}

impl QEmbedding {
    /// An embedding with this table, (n, dim).
    ///
    /// # Errors
    /// If the table is not a matrix.
    pub fn new(weight: Arc<QTensor>) -> Result<Self> {
        Self::with(QMatMul::QTensor(weight))
    }

    fn with(weight: QMatMul) -> Result<Self> {
        dims(&weight)?;
        Ok(Self { weight })
    }

    /// The table, quantised or in full precision.
    pub fn weight(&self) -> &QMatMul {
        &self.weight
    }
}

impl From<Embedding> for QEmbedding {
    /// The same table, in full precision.
    fn from(table: Embedding) -> Self {
        Self {
            weight: QMatMul::Tensor(table.embeddings().clone()),
        }
    }
}

impl Module for QEmbedding {
    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        match &self.weight {
            QMatMul::QTensor(table) => ops::quantised_embedding(ids, table),
            QMatMul::Tensor(table) => ops::embedding(ids, table),
            QMatMul::TensorF16(table) => ops::embedding(ids, &table.to_dtype(DType::F32)?),
        }
    }
}

/// Defines the LoRA type of a base layer with a quantised weight: the LoRA type of the layer in full
/// precision, which computes with either weight.
macro_rules! counterpart {
    ($(#[$doc:meta])* $lora:ident: $base:ty, $inner:ident, $adapt:expr, $to_base:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $lora($inner);

        impl $lora {
            /// The layer's adapters, which hold its blocks too: [`Adapters::blocks`].
            pub fn adapters(&self) -> &Adapters {
                self.0.adapters()
            }
        }

        impl std::ops::Deref for $lora {
            type Target = $inner;

            fn deref(&self) -> &$inner {
                &self.0
            }
        }

        impl Module for $lora {
            fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
                self.0.forward(xs)
            }
        }

        impl LoraModel for $base {
            type Lora = $lora;
            const IS_LAYER: bool = true;

            fn adapt(&self, cx: &mut Builder<'_>) -> Result<$lora> {
                let adapt: fn(&Self, &mut Builder<'_>) -> Result<$inner> = $adapt;
                Ok($lora(adapt(self, cx)?))
            }
        }

        impl LoraLayer for $base {}

        impl LoraModule for $lora {
            type Base = $base;

            fn to_base(&self) -> Result<$base> {
                let to_base: fn(&$inner) -> Result<$base> = $to_base;
                to_base(&self.0)
            }

            fn visit(&self, cursor: &mut Cursor<'_>) {
                self.0.visit(cursor);
            }

            fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
                self.0.visit_mut(cursor);
            }
        }
    };
}

counterpart!(
    /// A [`QLinear`] with low-rank updates: y = x·Wᵀ + b + s·B·A·x. A and B are in f32.
    ///
    /// All that [`LoraLinear`] does works here. `merge` dequantises the weight, adds the update and
    /// quantises the sum again, to the same type; [`Adapters::requantising_error`] says how far that is
    /// from the sum. `merge_in_full` keeps the sum itself. `unmerge` puts the very blocks back.
    LoraQLinear: QLinear, LoraLinear,
    |base, cx| LoraLinear::with(&base.weight, base.bias.as_ref(), cx),
    |layer| {
        let (weight, bias) = layer.quantised_base()?;
        QLinear::with(weight, bias)
    }
);

counterpart!(
    /// A [`QMatMul`] with low-rank updates: y = x·Wᵀ + s·B·A·x, see [`LoraQLinear`].
    ///
    /// Of a `QMatMul::TensorF16` this is a layer that computes in f32.
    LoraQMatMul: QMatMul, LoraLinear,
    |base, cx| LoraLinear::with(base, None, cx),
    |layer| match layer.quantised_base()? {
        (weight, None) => Ok(weight),
        (_, Some(_)) => Err(Error::layer("", "a `QMatMul` holds no bias")),
    }
);

counterpart!(
    /// A [`QEmbedding`] with low-rank updates: y = W\[i\] + s·(Aᵀ)\[i\]·Bᵀ. A and B are in f32.
    ///
    /// All that [`LoraEmbedding`] does works here; merging is that of [`LoraQLinear`].
    LoraQEmbedding: QEmbedding, LoraEmbedding,
    |base, cx| {
        let (_, width) = dims(&base.weight)?;
        let full = |table: &Tensor| Embedding::new(table.clone(), width);
        match &base.weight {
            QMatMul::QTensor(table) => LoraEmbedding::quantised(table, cx),
            QMatMul::Tensor(table) => full(table).adapt(cx),
            QMatMul::TensorF16(table) => full(&table.to_dtype(DType::F32)?).adapt(cx),
        }
    },
    |layer| QEmbedding::with(layer.quantised_base()?)
);

impl LoraLinear {
    /// The layer of a weight that may be quantised.
    fn with(weight: &QMatMul, bias: Option<&Tensor>, cx: &mut Builder<'_>) -> Result<Self> {
        let linear = |weight: &Tensor| Linear::new(weight.clone(), bias.cloned());
        match weight {
            QMatMul::QTensor(blocks) => {
                blocks.shape().dims2()?;
                let stand_in = cx.quantised(blocks, dtype_of(bias))?;
                let mut adapters = cx.adapters();
                adapters.blocks = Some(blocks.clone());
                Self::of_parts(stand_in, bias, adapters, cx)
            }
            QMatMul::Tensor(weight) => linear(weight).adapt(cx),
            QMatMul::TensorF16(weight) => linear(&weight.to_dtype(dtype_of(bias))?).adapt(cx),
        }
    }

    /// Weight and bias for a base layer that holds a quantised weight.
    fn quantised_base(&self) -> Result<(QMatMul, Option<Tensor>)> {
        let (weight, bias) = crate::adapter::merging::quantised_base_parts(self)?;
        Ok((weight, bias))
    }
}

impl LoraEmbedding {
    fn quantised_base(&self) -> Result<QMatMul> {
        Ok(crate::adapter::merging::quantised_base_parts(self)?.0)
    }
}

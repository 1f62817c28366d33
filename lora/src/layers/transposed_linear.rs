//! The linear layer whose weight is stored (in, out).

use crate::adapter::{
    Access, Adapted, Adapters, Form, LayerParts, LayerPartsMut, linear_parts, reading,
};
use crate::config::Kind;
use crate::{
    Builder, Cursor, CursorMut, LoraConfig, LoraLayer, LoraModel, LoraModule, Result, ops,
};
use candle_core::Tensor;
use candle_nn::{Module, VarBuilder};

/// A linear layer y = x·W + b with W stored (in, out), as GPT-2's checkpoints have it: the `Conv1D`
/// of transformers, for which PEFT sets `fan_in_fan_out`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Module;
/// use lora::layers::TransposedLinear;
///
/// let weight = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &Device::Cpu)?;
/// let layer = TransposedLinear::new(weight, None)?;
/// let y = layer.forward(&Tensor::ones((1, 2), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[5., 7., 9.]]);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TransposedLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl TransposedLinear {
    /// A layer of this weight, (in, out), and bias, (out).
    ///
    /// # Errors
    /// If the weight is no matrix.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        weight.dims2()?;
        Ok(Self { weight, bias })
    }

    /// Loads `weight`, (in, out), and `bias`.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn load(inputs: usize, outputs: usize, vb: VarBuilder<'_>) -> candle_core::Result<Self> {
        Ok(Self {
            weight: vb.get((inputs, outputs), "weight")?,
            bias: Some(vb.get(outputs, "bias")?),
        })
    }

    /// The weight, (in, out).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, (out).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for TransposedLinear {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        ops::linear(xs, &self.weight.t()?, self.bias.as_ref())
    }
}

/// A [`TransposedLinear`] layer with low-rank updates: y = x·W + b + s·B·A·x.
///
/// With x of shape (.., in): W (in, out), b (out), A (r, in), B (out, r), which are not transposed,
/// as in PEFT. As [`LoraLinear`](super::LoraLinear) otherwise.
#[derive(Clone, Debug)]
pub struct LoraTransposedLinear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapters: Adapters,
}

impl LoraTransposedLinear {
    /// A layer with one fresh adapter. The base weight is shared.
    ///
    /// With a seed, layers of one shape get the same initial values: give each its own.
    ///
    /// # Errors
    /// If the configuration is invalid or its patterns do not match a layer that stands alone.
    pub fn new(base: &TransposedLinear, config: &LoraConfig) -> Result<Self> {
        base.to_lora(config)
    }

    /// The weight, (in, out), with the active adapters in it, for a model whose own code computes
    /// with it. In training the gradient reaches the adapters; their dropout does not act. As training
    /// goes on, the tensor's values follow the adapters, as a parameter's do.
    ///
    /// The layer's own weight is [`Adapted::unmerged_weight`]. In a view for mixed batches the rows have
    /// no weight in common: the tensor has no elements, and a warning says why.
    pub fn weight(&self) -> &Tensor {
        reading::weight(self)
    }

    /// The bias, (out), as [`weight`](Self::weight): with the bias on B of active adapters.
    pub fn bias(&self) -> Option<&Tensor> {
        reading::bias(self)
    }

    /// The layer's adapters.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    fn parts_of_forward(&self) -> candle_core::Result<ops::LinearParts> {
        let weight = self.adapters.seen(&self.weight).t()?;
        linear_parts(self, weight, Self::parts_of_forward)
    }
}

impl Module for LoraTransposedLinear {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        ops::adapted_linear(xs, &self.parts_of_forward()?)
    }
}

impl LoraModel for TransposedLinear {
    type Lora = LoraTransposedLinear;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraTransposedLinear> {
        let layer = LoraTransposedLinear {
            weight: cx.parameter(&self.weight),
            bias: self.bias.as_ref().map(|bias| cx.parameter(bias)),
            adapters: cx.adapters(),
        };
        cx.layer(layer)
    }
}

impl LoraLayer for TransposedLinear {}

impl LoraModule for LoraTransposedLinear {
    type Base = TransposedLinear;

    fn to_base(&self) -> Result<TransposedLinear> {
        let (weight, bias) = self.base_parts()?;
        TransposedLinear::new(weight, bias)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Adapted for LoraTransposedLinear {
    fn layer_kind(&self) -> Kind {
        Kind::TransposedLinear
    }

    fn form(&self) -> Form {
        Form::Transposed
    }

    fn parts(&self) -> LayerParts<'_> {
        LayerParts {
            weight: &self.weight,
            bias: self.bias.as_ref(),
            adapters: &self.adapters,
        }
    }

    fn parts_mut(&mut self, _: Access) -> LayerPartsMut<'_> {
        LayerPartsMut {
            weight: &mut self.weight,
            bias: self.bias.as_mut(),
            adapters: self.adapters.changing(),
        }
    }
}

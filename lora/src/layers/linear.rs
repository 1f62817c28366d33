//! The linear layer.

use crate::adapter::{
    Access, Adapted, Adapters, Form, LayerParts, LayerPartsMut, linear_parts, reading,
};
use crate::config::Kind;
use crate::{
    Builder, Cursor, CursorMut, LoraConfig, LoraLayer, LoraModel, LoraModule, Result, ops,
};
use candle_core::Tensor;
use candle_nn::{Linear, Module};

/// A [`Linear`] layer with low-rank updates: y = x·Wᵀ + b + s·B·A·x.
///
/// With x of shape (.., in): W (out, in), b (out), A (r, in), B (out, r). The update is LoRA's,
/// <https://arxiv.org/abs/2106.09685>, computed as in PEFT: in training the branch's input goes
/// through dropout, and with a bf16 or f16 base A and B are f32.
#[derive(Clone, Debug)]
pub struct LoraLinear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapters: Adapters,
}

impl LoraLinear {
    /// A layer with one fresh adapter. The base weight is shared.
    ///
    /// With a seed, layers of one shape get the same initial values: give each its own.
    ///
    /// # Errors
    /// If the configuration is invalid or its patterns do not match a layer that stands alone.
    pub fn new(base: &Linear, config: &LoraConfig) -> Result<Self> {
        base.to_lora(config)
    }

    /// The weight, (out, in), with the active adapters in it, for a model whose own code computes
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

    /// A layer of a frozen weight, which is known to the walk already.
    pub(super) fn of_parts(
        weight: Tensor,
        bias: Option<&Tensor>,
        adapters: Adapters,
        cx: &mut Builder<'_>,
    ) -> Result<Self> {
        let bias = bias.map(|bias| cx.parameter(bias));
        cx.layer(Self {
            weight,
            bias,
            adapters,
        })
    }

    /// The layer as its forward pass computes it.
    pub(crate) fn parts_of_forward(&self) -> candle_core::Result<ops::LinearParts> {
        let weight = self.adapters.seen(&self.weight);
        linear_parts(self, weight, Self::parts_of_forward)
    }
}

impl Module for LoraLinear {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        ops::adapted_linear(xs, &self.parts_of_forward()?)
    }
}

impl LoraModel for Linear {
    type Lora = LoraLinear;
    const IS_LAYER: bool = true;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraLinear> {
        self.weight().dims2()?;
        let (weight, adapters) = (cx.parameter(self.weight()), cx.adapters());
        LoraLinear::of_parts(weight, self.bias(), adapters, cx)
    }
}

impl LoraLayer for Linear {}

impl LoraModule for LoraLinear {
    type Base = Linear;

    fn to_base(&self) -> Result<Linear> {
        let (weight, bias) = self.base_parts()?;
        Ok(Linear::new(weight, bias))
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Adapted for LoraLinear {
    fn layer_kind(&self) -> Kind {
        Kind::Linear
    }

    fn form(&self) -> Form {
        Form::Linear
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

//! Layer and root-mean-square normalisation.

use crate::adapter::Access;
use crate::adapter::{Copies, release, seen};
use crate::config::Kind;
use crate::{Builder, Cursor, CursorMut, Layer, LoraModel, LoraModule, Param, Result, ops};
use candle_core::Tensor;
use candle_nn::{LayerNorm, LayerNormConfig, Module, RmsNorm, VarBuilder};

/// A [`LayerNorm`] with a gradient. Weight and bias are (n), for inputs (.., n).
#[derive(Clone, Debug)]
pub struct LoraLayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    remove_mean: bool,
    eps: f64,
    training: bool,
    kind: Kind,
    copies: Copies,
}

impl LoraLayerNorm {
    /// The weight, (n).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, (n).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Whether the mean is taken off first.
    pub fn remove_mean(&self) -> bool {
        self.remove_mean
    }

    /// The norm as its forward pass computes it.
    pub(crate) fn parts_of_forward(&self) -> ops::NormParts {
        let bias = self.bias.as_ref();
        ops::NormParts {
            weight: seen(&self.weight, self.training),
            bias: bias.map(|bias| seen(bias, self.training)),
            eps: self.eps,
            remove_mean: self.remove_mean,
        }
    }

    fn adapt(base: &LayerNorm, kind: Kind, cx: &mut Builder<'_>) -> Result<Self> {
        let layer = Self {
            weight: cx.parameter(base.weight()),
            bias: base.bias().map(|bias| cx.parameter(bias)),
            remove_mean: base.remove_mean(),
            eps: base.eps(),
            training: true,
            kind,
            copies: Copies::default(),
        };
        cx.layer(layer)
    }
}

impl Module for LoraLayerNorm {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let ops::NormParts {
            weight,
            bias,
            eps,
            remove_mean,
        } = self.parts_of_forward();
        ops::norm(xs, &weight, bias.as_ref(), eps, remove_mean)
    }
}

impl LoraModel for LayerNorm {
    type Lora = LoraLayerNorm;
    const IS_LAYER: bool = true;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraLayerNorm> {
        LoraLayerNorm::adapt(self, Kind::LayerNorm, cx)
    }
}

impl LoraModule for LoraLayerNorm {
    type Base = LayerNorm;

    fn to_base(&self) -> Result<LayerNorm> {
        let weight = release(&self.weight)?;
        Ok(match (&self.bias, self.remove_mean) {
            (Some(bias), true) => LayerNorm::new(weight, release(bias)?, self.eps),
            (None, true) => LayerNorm::new_no_bias(weight, self.eps),
            (None, false) => LayerNorm::rms_norm(weight, self.eps),
            // Only candle's function for checkpoints makes this combination.
            (Some(bias), false) => {
                let (size, dtype, device) = (weight.elem_count(), weight.dtype(), weight.device());
                let config = LayerNormConfig {
                    eps: self.eps,
                    remove_mean: false,
                    affine: true,
                };
                let tensors = [("weight", weight.clone()), ("bias", release(bias)?)];
                let tensors = tensors.map(|(name, tensor)| (name.to_string(), tensor));
                let vb = VarBuilder::from_tensors(tensors.into(), dtype, device);
                candle_nn::layer_norm(size, config, vb)?
            }
        })
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Layer for LoraLayerNorm {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        Param::weight_and_bias(&self.weight, self.bias.as_ref())
    }

    fn params_mut(&mut self, _: Access) -> Vec<Param<&mut Tensor>> {
        Param::weight_and_bias(&mut self.weight, self.bias.as_mut())
    }

    fn set_training(&mut self, training: bool) {
        self.training = training;
    }

    fn copies(&self) -> Option<&Copies> {
        Some(&self.copies)
    }

    fn copies_mut(&mut self, _: Access) -> Option<&mut Copies> {
        Some(&mut self.copies)
    }
}

/// An [`RmsNorm`] with a gradient. The weight is (n), for inputs (.., n).
#[derive(Clone, Debug)]
pub struct LoraRmsNorm(LoraLayerNorm);

impl LoraRmsNorm {
    /// The weight, (n).
    pub fn weight(&self) -> &Tensor {
        self.0.weight()
    }

    /// What is added to the mean of squares.
    pub fn eps(&self) -> f64 {
        self.0.eps()
    }

    /// The norm as its forward pass computes it.
    pub(crate) fn parts_of_forward(&self) -> ops::NormParts {
        self.0.parts_of_forward()
    }

    /// As [`forward`](Module::forward): here both pass the gradient.
    ///
    /// # Errors
    /// As [`forward`](Module::forward).
    pub fn forward_diff(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.0.forward(xs)
    }
}

impl Module for LoraRmsNorm {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.0.forward(xs)
    }
}

impl LoraModel for RmsNorm {
    type Lora = LoraRmsNorm;
    const IS_LAYER: bool = true;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraRmsNorm> {
        let inner = self.clone().into_inner();
        Ok(LoraRmsNorm(LoraLayerNorm::adapt(
            &inner,
            Kind::RmsNorm,
            cx,
        )?))
    }
}

impl LoraModule for LoraRmsNorm {
    type Base = RmsNorm;

    fn to_base(&self) -> Result<RmsNorm> {
        Ok(RmsNorm::new(release(self.weight())?, self.eps()))
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(&self.0);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(&mut self.0);
    }
}

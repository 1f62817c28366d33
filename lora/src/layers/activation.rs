//! Activations.

use crate::{Builder, Cursor, CursorMut, LoraModel, LoraModule, Result, ops};
use candle_core::Tensor;
use candle_nn::{Activation, Module};
use std::ops::Deref;

/// An [`Activation`] whose derivative is PyTorch's. It holds no parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraActivation(Activation);

impl Deref for LoraActivation {
    type Target = Activation;

    fn deref(&self) -> &Activation {
        &self.0
    }
}

impl From<Activation> for LoraActivation {
    fn from(activation: Activation) -> Self {
        Self(activation)
    }
}

impl Module for LoraActivation {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        ops::activate(xs, self.0)
    }
}

impl LoraModel for Activation {
    type Lora = LoraActivation;

    fn adapt(&self, _: &mut Builder<'_>) -> Result<LoraActivation> {
        Ok(LoraActivation(*self))
    }
}

impl LoraModule for LoraActivation {
    type Base = Activation;

    fn to_base(&self) -> Result<Activation> {
        Ok(self.0)
    }

    fn visit(&self, _: &mut Cursor<'_>) {}

    fn visit_mut(&mut self, _: &mut CursorMut<'_>) {}
}

//! PReLU, the activation with a parameter.

use crate::adapter::{Access, Copies, release, seen};
use crate::config::Kind;
use crate::{Builder, Cursor, CursorMut, Layer, LoraModel, LoraModule, Param, Result, ops};
use candle_core::{Tensor, bail};
use candle_nn::{Module, PReLU};

/// A [`PReLU`] with a gradient that leaves out a frozen weight. It takes no adapter; it is frozen, or
/// trained in full. The weight is (channels), for inputs (batch, channels, ..), or a single number.
#[derive(Clone, Debug)]
pub struct LoraPReLU {
    weight: Tensor,
    is_scalar: bool,
    training: bool,
    copies: Copies,
}

impl LoraPReLU {
    /// The weight, (channels) or (1).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// True if one number is the weight of all channels.
    pub fn is_scalar(&self) -> bool {
        self.is_scalar
    }
}

impl Module for LoraPReLU {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let weight = seen(&self.weight, self.training);
        if self.is_scalar {
            return ops::prelu(xs, &weight.reshape(())?);
        }
        if xs.rank() < 2 || xs.shape() == weight.shape() {
            return ops::prelu(xs, &weight);
        }
        let (channels, count) = (xs.dim(1)?, weight.elem_count());
        if channels != count {
            bail!(
                "prelu: an input of shape {:?} does not have {count} channels",
                xs.dims()
            );
        }
        let mut shape = vec![1; xs.rank()];
        shape[1] = count;
        ops::prelu(xs, &weight.reshape(shape)?)
    }
}

impl LoraModel for PReLU {
    type Lora = LoraPReLU;
    const IS_LAYER: bool = true;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraPReLU> {
        let layer = LoraPReLU {
            weight: cx.parameter(self.weight()),
            is_scalar: self.is_scalar(),
            training: true,
            copies: Copies::default(),
        };
        cx.layer(layer)
    }
}

impl LoraModule for LoraPReLU {
    type Base = PReLU;

    fn to_base(&self) -> Result<PReLU> {
        Ok(PReLU::new(release(&self.weight)?, self.is_scalar))
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Layer for LoraPReLU {
    fn kind(&self) -> Kind {
        Kind::PReLU
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        Param::weight_and_bias(&self.weight, None)
    }

    fn params_mut(&mut self, _: Access) -> Vec<Param<&mut Tensor>> {
        Param::weight_and_bias(&mut self.weight, None)
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

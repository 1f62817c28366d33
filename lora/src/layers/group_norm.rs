//! Group normalisation.

use crate::adapter::Access;
use crate::adapter::{Copies, release, seen};
use crate::config::Kind;
use crate::{Builder, Cursor, CursorMut, Error, Layer, LoraModel, LoraModule, Param, Result, ops};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{GroupNorm, Module};

/// A [`GroupNorm`] with a gradient that leaves out frozen parameters. Weight and bias are
/// (channels), for inputs (batch, channels, ..). Candle's layer does not show its tensors, so these
/// are copies.
#[derive(Clone, Debug)]
pub struct LoraGroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
    training: bool,
    copies: Copies,
}

impl LoraGroupNorm {
    /// The weight, (channels).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, (channels).
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }
}

impl Module for LoraGroupNorm {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let (weight, bias) = (
            seen(&self.weight, self.training),
            seen(&self.bias, self.training),
        );
        ops::group_norm(xs, &weight, &bias, self.groups, self.eps)
    }
}

impl LoraModel for GroupNorm {
    type Lora = LoraGroupNorm;
    const IS_LAYER: bool = true;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraGroupNorm> {
        let parts = Parts::of(self, cx.devices()).map_err(|error| {
            Error::layer(
                cx.path(),
                format!("cannot read candle's GroupNorm: {error}"),
            )
        })?;
        let layer = LoraGroupNorm {
            weight: cx.parameter(&parts.weight),
            bias: cx.parameter(&parts.bias),
            groups: parts.groups,
            eps: parts.eps,
            training: true,
            copies: Copies::default(),
        };
        cx.layer(layer)
    }
}

impl LoraModule for LoraGroupNorm {
    type Base = GroupNorm;

    fn to_base(&self) -> Result<GroupNorm> {
        let (weight, bias) = (release(&self.weight)?, release(&self.bias)?);
        let channels = weight.elem_count();
        Ok(GroupNorm::new(
            weight,
            bias,
            channels,
            self.groups,
            self.eps,
        )?)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Layer for LoraGroupNorm {
    fn kind(&self) -> Kind {
        Kind::GroupNorm
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        Param::weight_and_bias(&self.weight, Some(&self.bias))
    }

    fn params_mut(&mut self, _: Access) -> Vec<Param<&mut Tensor>> {
        Param::weight_and_bias(&mut self.weight, Some(&mut self.bias))
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

/// The parts of a [`GroupNorm`]. Candle keeps them private, but the layer reveals them: the numbers
/// in its `Debug` output, the tensors in its results.
struct Parts {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl Parts {
    fn of(norm: &GroupNorm, devices: &[Device]) -> Result<Self> {
        let debug = format!("{norm:?}");
        let number = |name: &str| -> Result<f64> {
            let rest = debug
                .rsplit_once(&format!("{name}: "))
                .map(|(_, rest)| rest);
            let number = rest.and_then(|rest| rest.split([',', ' ', '}']).next());
            let number = number.and_then(|number| number.parse().ok());
            number.ok_or_else(|| Error::layer("", format!("no {name} in `{debug}`")))
        };
        let (eps, groups) = (number("eps")?, number("num_groups")? as usize);
        let channels = number("num_channels")? as usize;
        let bias = bias(norm, channels, devices)?;
        let dtype = bias.dtype();

        // Along this direction the derivative of the output by x is the weight, exactly. The input
        // has mean 0 and variance scale², which eps does not change. The direction is at right
        // angles to both 1 and x, so mean and variance do not move. All factors are powers of two,
        // so nothing is rounded.
        let scale = match dtype {
            DType::F64 => 2f64.powi(40),
            DType::F16 => 2f64.powi(8),
            _ => 2f64.powi(15),
        };
        let repeat = |signs: [f64; 4]| -> Result<Tensor> {
            let row =
                Tensor::new(&signs.map(|sign| sign * scale), bias.device())?.to_dtype(dtype)?;
            let row = row.reshape((1, 1, 4))?.broadcast_as((1, channels, 4))?;
            Ok(row.contiguous()?)
        };
        let x = Var::from_tensor(&repeat([1.0, -1.0, 1.0, -1.0])?)?;
        let direction = repeat([1.0, 1.0, -1.0, -1.0])?;
        let grads = (norm.forward(&x)? * direction)?.sum_all()?.backward()?;
        let Some(grad) = grads.get(&x) else {
            return Err(Error::layer("", "its forward pass records no gradient"));
        };
        let weight = grad.narrow(2, 0, 1)?.flatten_all()?.detach();
        Ok(Self {
            weight,
            bias,
            groups,
            eps,
        })
    }
}

/// The bias, of the layer's dtype and on its device: with x = 0 the output is the bias.
fn bias(norm: &GroupNorm, channels: usize, devices: &[Device]) -> Result<Tensor> {
    for device in devices {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            let zeros = Tensor::zeros((1, channels, 1), dtype, device)?;
            if let Ok(bias) = norm.forward(&zeros) {
                return Ok(bias.flatten_all()?.detach());
            }
        }
    }
    Err(Error::layer(
        "",
        "its weights must be floating-point, and on the CPU or the device of a layer before it",
    ))
}

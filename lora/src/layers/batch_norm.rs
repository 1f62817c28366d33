//! Batch normalisation.

use crate::adapter::Access;
use crate::adapter::{Copies, release, seen};
use crate::config::Kind;
use crate::{Builder, Cursor, CursorMut, Layer, LoraModel, LoraModule, Param, Result, Role, ops};
use candle_core::{ModuleT, Tensor};
use candle_nn::BatchNorm;

/// A [`BatchNorm`] that always uses its running statistics, with a gradient.
///
/// Tuning keeps the statistics of the base model: a small data set would only spoil them. Weight,
/// bias and statistics are (channels), for inputs (batch, channels, ..).
#[derive(Clone, Debug)]
pub struct LoraBatchNorm {
    weight_and_bias: Option<(Tensor, Tensor)>,
    running_mean: Tensor,
    running_var: Tensor,
    eps: f64,
    momentum: f64,
    training: bool,
    copies: Copies,
}

impl LoraBatchNorm {
    /// The running mean, (channels).
    pub fn running_mean(&self) -> &Tensor {
        &self.running_mean
    }

    /// The running variance, (channels).
    pub fn running_var(&self) -> &Tensor {
        &self.running_var
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Weight and bias, (channels) each.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.weight_and_bias.as_ref().map(|(w, b)| (w, b))
    }

    /// The same as [`forward_t`](ModuleT::forward_t): the running statistics are frozen with the rest of
    /// the layer, also where the base model's own code trains.
    ///
    /// # Errors
    /// If the input has another number of channels.
    pub fn forward_train(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_t(xs, true)
    }
}

impl ModuleT for LoraBatchNorm {
    /// Normalises with the running statistics, whatever `train` says.
    fn forward_t(&self, xs: &Tensor, _train: bool) -> candle_core::Result<Tensor> {
        if xs.rank() < 2 || xs.dim(1)? != self.running_mean.elem_count() {
            candle_core::bail!(
                "batch norm: an input of shape {:?} does not have {} channels",
                xs.dims(),
                self.running_mean.elem_count()
            );
        }
        // (x − mean) / √(var + eps) · weight + bias as one scale and one shift a channel.
        let inverse = (&self.running_var + self.eps)?.sqrt()?.recip()?;
        let (scale, shift) = match &self.weight_and_bias {
            None => (inverse.clone(), (&self.running_mean * inverse)?.neg()?),
            Some((weight, bias)) => {
                let scale = (weight * inverse)?;
                let shift = (bias - (&self.running_mean * &scale)?)?;
                (scale, shift)
            }
        };
        let (scale, shift) = (seen(&scale, self.training), seen(&shift, self.training));
        ops::affine(xs, &scale, Some(&shift), 1)
    }
}

impl LoraModel for BatchNorm {
    type Lora = LoraBatchNorm;
    const IS_LAYER: bool = true;

    fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraBatchNorm> {
        let weight_and_bias = self.weight_and_bias();
        let layer = LoraBatchNorm {
            weight_and_bias: weight_and_bias.map(|(w, b)| (cx.parameter(w), cx.parameter(b))),
            running_mean: cx.parameter(self.running_mean()),
            running_var: cx.parameter(self.running_var()),
            eps: self.eps(),
            momentum: self.momentum(),
            training: true,
            copies: Copies::default(),
        };
        cx.layer(layer)
    }
}

impl LoraModule for LoraBatchNorm {
    type Base = BatchNorm;

    fn to_base(&self) -> Result<BatchNorm> {
        let (mean, var) = (release(&self.running_mean)?, release(&self.running_var)?);
        let (channels, eps, momentum) = (mean.elem_count(), self.eps, self.momentum);
        Ok(match &self.weight_and_bias {
            None => BatchNorm::new_no_bias_with_momentum(channels, mean, var, eps, momentum)?,
            Some((weight, bias)) => BatchNorm::new_with_momentum(
                channels,
                mean,
                var,
                release(weight)?,
                release(bias)?,
                eps,
                momentum,
            )?,
        })
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Layer for LoraBatchNorm {
    fn kind(&self) -> Kind {
        Kind::BatchNorm
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        let mut params = match &self.weight_and_bias {
            None => Vec::new(),
            Some((weight, bias)) => Param::weight_and_bias(weight, Some(bias)),
        };
        params.push(Param::new("running_mean", Role::Buffer, &self.running_mean));
        params.push(Param::new("running_var", Role::Buffer, &self.running_var));
        params
    }

    fn params_mut(&mut self, _: Access) -> Vec<Param<&mut Tensor>> {
        let mut params = match &mut self.weight_and_bias {
            None => Vec::new(),
            Some((weight, bias)) => Param::weight_and_bias(weight, Some(bias)),
        };
        let (mean, var) = (&mut self.running_mean, &mut self.running_var);
        params.push(Param::new("running_mean", Role::Buffer, mean));
        params.push(Param::new("running_var", Role::Buffer, var));
        params
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

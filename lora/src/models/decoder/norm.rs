//! Root-mean-square normalisation.

use super::config::DecoderConfig;
use crate::LoraModel;
use crate::blocks::AsNorm;
use crate::ops::{self, NormParts};
use candle_core::{Result, Tensor};
use candle_nn::{Init, Module, VarBuilder};

/// x·weight / √(mean(x²) + eps) over the last dimension. Gemma's models take weight + 1 for the
/// weight.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Norm {
    weight: Tensor,
    adds_one: bool,
    eps: f64,
}

impl Norm {
    pub(super) fn new(width: usize, config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        let adds_one = config.norms_add_one;
        let start = Init::Const(if adds_one { 0.0 } else { 1.0 });
        Ok(Self {
            weight: vb.get_with_hints(width, "weight", start)?,
            adds_one,
            eps: config.rms_norm_eps,
        })
    }
}

#[lora::forward]
impl Norm {
    /// How many numbers are normalised together.
    pub(super) fn width(&self) -> usize {
        self.weight.elem_count()
    }

    /// The factors, for candle's and the ops' norms.
    fn factors(&self) -> Result<Tensor> {
        match self.adds_one {
            true => &self.weight + 1.0,
            false => Ok(self.weight.clone()),
        }
    }
}

#[lora::forward]
impl Module for Norm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::rms_norm(xs, &self.factors()?, self.eps as f32)
    }
}

#[lora::forward]
impl AsNorm for Norm {
    fn as_norm(&self) -> Result<NormParts> {
        Ok(NormParts {
            weight: self.factors()?,
            bias: None,
            eps: f64::from(self.eps as f32),
            remove_mean: false,
        })
    }
}

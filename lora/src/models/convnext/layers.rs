//! What the parts of a ConvNeXt are made of: convolutions and linear layers with timm's initial
//! values, and its normalisation layers.

use super::config::{ConvNextConfig, NormLayer};
use crate::LoraModel;
use crate::ops;
use candle_core::{D, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Init, LayerNorm, Linear, Module, VarBuilder, init};

/// timm draws weights from N(0, 0.02²), cut off at 100 standard deviations.
const WEIGHT: Init = Init::Randn {
    mean: 0.0,
    stdev: 0.02,
};

pub(super) fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    let weight = vb.get_with_hints((outputs, inputs), "weight", WEIGHT)?;
    let bias = vb.get_with_hints(outputs, "bias", init::ZERO)?;
    Ok(Linear::new(weight, Some(bias)))
}

pub(super) fn conv2d(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let shape = (outputs, inputs / config.groups, kernel, kernel);
    let weight = vb.get_with_hints(shape, "weight", WEIGHT)?;
    let bias = vb.get_with_hints(outputs, "bias", init::ZERO)?;
    Ok(Conv2d::new(weight, Some(bias), config))
}

/// A normalisation over the last dimension.
#[derive(Clone, Debug, LoraModel)]
pub(super) enum Norm {
    /// With or without taking the mean off.
    Layer(#[lora(flatten)] LayerNorm),
    Simple(#[lora(flatten)] SimpleNorm),
}

impl Norm {
    pub(super) fn new(channels: usize, config: &ConvNextConfig, vb: VarBuilder) -> Result<Self> {
        let eps = config.norm_eps;
        let weight = vb.get_with_hints(channels, "weight", init::ONE)?;
        Ok(match config.norm_layer {
            NormLayer::Layer => {
                let bias = vb.get_with_hints(channels, "bias", init::ZERO)?;
                Norm::Layer(LayerNorm::new(weight, bias, eps))
            }
            NormLayer::Rms => Norm::Layer(LayerNorm::rms_norm(weight, eps)),
            NormLayer::Simple => Norm::Simple(SimpleNorm { weight, eps }),
        })
    }
}

#[lora::forward]
impl Module for Norm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(xs),
            Self::Simple(norm) => norm.forward(xs),
        }
    }
}

/// x·weight / √(var(x) + eps), with the unbiased variance; x itself is not centred.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct SimpleNorm {
    weight: Tensor,
    eps: f64,
}

#[lora::forward]
impl Module for SimpleNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let variance = xs.var_keepdim(D::Minus1)?;
        let inverse = (variance + self.eps)?.sqrt()?.recip()?;
        let scaled = xs.broadcast_mul(&inverse)?;
        ops::affine(&scaled, &self.weight, None, xs.rank() - 1)
    }
}

/// (batch, channels, height, width) to (batch, height, width, channels), a view.
pub(super) fn channels_last(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 2, 3, 1))
}

/// (batch, height, width, channels) to (batch, channels, height, width), a view.
pub(super) fn channels_first(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 3, 1, 2))
}

/// A normalisation over the channels of a (batch, channels, height, width) map.
pub(super) fn norm2d(xs: &Tensor, norm: &impl Module) -> Result<Tensor> {
    channels_first(&norm.forward(&channels_last(xs)?)?)
}

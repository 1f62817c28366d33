//! The block: depthwise convolution, normalisation, MLP, all beside a shortcut.

use super::config::ConvNextConfig;
use super::layers::{LoraNorm, Norm, channels_first, channels_last, conv2d, linear, norm2d};
use crate::layers::Recompute;
use crate::{LoraModel, blocks, ops};
use candle_core::{Result, Tensor};
use candle_nn::{Activation, Conv2d, Conv2dConfig, Init, Linear, Module, VarBuilder, init};

/// A block of `(batch, channels, height, width)` maps; the shape stays.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Block {
    conv_dw: Conv2d,
    norm: Norm,
    mlp: Recompute<Mlp>,
    gamma: Option<Tensor>,
    conv_mlp: bool,
}

impl Block {
    pub(super) fn new(
        channels: usize,
        kernel: usize,
        config: &ConvNextConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let depthwise = Conv2dConfig {
            padding: kernel / 2,
            groups: channels,
            ..Default::default()
        };
        let gamma = config
            .ls_init_value
            .map(|value| vb.get_with_hints(channels, "gamma", Init::Const(value)));
        Ok(Self {
            conv_dw: conv2d(channels, channels, kernel, depthwise, vb.pp("conv_dw"))?,
            norm: Norm::new(channels, config, vb.pp("norm"))?,
            mlp: Mlp::new(channels, config, vb.pp("mlp"))?.into(),
            gamma: gamma.transpose()?,
            conv_mlp: config.conv_mlp,
        })
    }
}

#[lora::forward(also(Norm, Dense))]
impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.conv_dw.forward(xs)?;
        let mlp = &self.mlp;
        // In the usual block, all behind the convolution is one node.
        if let (Norm::Layer(norm), Dense::Linear(fc1), Dense::Linear(fc2), None) =
            (&self.norm, &mlp.fc1, &mlp.fc2, &mlp.grn)
        {
            let ys = blocks::Mlp::new(fc1, &mlp.act, fc2)
                .norm(norm)
                .gamma(self.gamma.as_ref())
                .recompute(mlp.recomputes())
                .shortcut(&channels_last(xs)?)
                .forward(&channels_last(&ys)?)?;
            return channels_first(&ys);
        }
        // Linear layers want the channels last, convolutions first.
        let ys = if self.conv_mlp {
            mlp.forward(&norm2d(&ys, &self.norm)?)?
        } else {
            let ys = channels_last(&ys)?.apply(&self.norm)?;
            channels_first(&mlp.forward(&ys)?)?
        };
        ops::residual(xs, &ys, self.gamma.as_ref(), 1)
    }
}

/// Two layers with four times the channels between them.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Mlp {
    fc1: Dense,
    act: Activation,
    grn: Option<Grn>,
    fc2: Dense,
}

impl Mlp {
    fn new(channels: usize, config: &ConvNextConfig, vb: VarBuilder) -> Result<Self> {
        let hidden = 4 * channels;
        let grn = config
            .use_grn
            .then(|| Grn::new(hidden, config.conv_mlp, vb.pp("grn")));
        Ok(Self {
            fc1: Dense::new(channels, hidden, config.conv_mlp, vb.pp("fc1"))?,
            act: config.act_layer.activation(),
            grn: grn.transpose()?,
            fc2: Dense::new(hidden, channels, config.conv_mlp, vb.pp("fc2"))?,
        })
    }
}

#[lora::forward]
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut hidden = xs.apply(&self.fc1)?.apply(&self.act)?;
        if let Some(grn) = &self.grn {
            hidden = grn.forward(&hidden)?;
        }
        hidden.apply(&self.fc2)
    }
}

/// A linear map of the channels: of the last dimension, or as a 1x1 convolution of the second.
#[derive(Clone, Debug, LoraModel)]
pub(super) enum Dense {
    Linear(#[lora(flatten, rank)] Linear),
    Conv(#[lora(flatten, rank)] Conv2d),
}

impl Dense {
    fn new(inputs: usize, outputs: usize, conv: bool, vb: VarBuilder) -> Result<Self> {
        Ok(if conv {
            Dense::Conv(conv2d(inputs, outputs, 1, Conv2dConfig::default(), vb)?)
        } else {
            Dense::Linear(linear(inputs, outputs, vb)?)
        })
    }
}

#[lora::forward]
impl Module for Dense {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear(layer) => layer.forward(xs),
            Self::Conv(layer) => layer.forward(xs),
        }
    }
}

/// Global response normalisation, <https://arxiv.org/abs/2301.00808>: each channel is scaled by its
/// norm over the image, relative to the mean of all channels' norms.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Grn {
    weight: Tensor,
    bias: Tensor,
    channels_first: bool,
}

impl Grn {
    fn new(channels: usize, channels_first: bool, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(channels, "weight", init::ZERO)?,
            bias: vb.get_with_hints(channels, "bias", init::ZERO)?,
            channels_first,
        })
    }
}

#[lora::forward]
impl Module for Grn {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (channels, space) = if self.channels_first {
            (1, (2, 3))
        } else {
            (3, (1, 2))
        };
        let squares = xs.sqr()?.sum_keepdim(space)?;
        // The root has no slope at 0: a channel that is zero everywhere gets a gradient of 0.
        let zero = squares.detach().eq(0.0)?.to_dtype(xs.dtype())?;
        let norms = ((squares + &zero)?.sqrt()? - zero)?;
        let mean = (norms.mean_keepdim(channels)? + 1e-6)?;
        let scaled = xs.broadcast_mul(&norms.broadcast_div(&mean)?)?;
        xs + ops::affine(&scaled, &self.weight, Some(&self.bias), channels)?
    }
}

//! The first layers, which reduce the image to a quarter of its height and width.

use super::config::{ConvNextConfig, StemType};
use super::layers::{Norm, conv2d, norm2d};
use crate::LoraModel;
use candle_core::{Result, Tensor};
use candle_nn::{Activation, Conv2d, Conv2dConfig, Module, VarBuilder};

/// From (batch, in_chans, height, width) to (batch, dims\[0\], height / 4, width / 4).
#[derive(Clone, Debug, LoraModel)]
pub(super) enum Stem {
    Patch(Conv2d, Norm),
    Overlap(Conv2d, Conv2d, Norm),
    OverlapAct(Conv2d, Activation, Conv2d, Norm),
}

impl Stem {
    pub(super) fn new(config: &ConvNextConfig, vb: VarBuilder) -> Result<Self> {
        let (inputs, out) = (config.in_chans, config.dims[0]);
        let norm = |index| Norm::new(out, config, vb.pp(index));
        let halve = |inputs, outputs, index: usize| {
            let config = Conv2dConfig {
                padding: 1,
                stride: 2,
                ..Default::default()
            };
            conv2d(inputs, outputs, 3, config, vb.pp(index))
        };
        Ok(match config.stem_type {
            StemType::Patch => {
                let patch = config.patch_size;
                let patches = Conv2dConfig {
                    stride: patch,
                    ..Default::default()
                };
                Stem::Patch(conv2d(inputs, out, patch, patches, vb.pp(0))?, norm(1)?)
            }
            StemType::Overlap => {
                Stem::Overlap(halve(inputs, out, 0)?, halve(out, out, 1)?, norm(2)?)
            }
            StemType::OverlapTiered => {
                let middle = tiered(out);
                Stem::Overlap(halve(inputs, middle, 0)?, halve(middle, out, 1)?, norm(2)?)
            }
            StemType::OverlapAct => Stem::OverlapAct(
                halve(inputs, out, 0)?,
                config.act_layer.activation(),
                halve(out, out, 2)?,
                norm(3)?,
            ),
        })
    }
}

#[lora::forward]
impl Module for Stem {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Patch(conv, norm) => norm2d(&xs.apply(conv)?, norm),
            Self::Overlap(first, second, norm) => norm2d(&xs.apply(first)?.apply(second)?, norm),
            Self::OverlapAct(first, act, second, norm) => {
                norm2d(&xs.apply(first)?.apply(act)?.apply(second)?, norm)
            }
        }
    }
}

/// Half the channels, to the nearest multiple of 8 that is not more than a tenth below: timm's
/// `make_divisible`.
fn tiered(channels: usize) -> usize {
    let half = channels / 2;
    let rounded = ((half + 4) / 8 * 8).max(8);
    if 10 * rounded < 9 * half {
        rounded + 8
    } else {
        rounded
    }
}

//! A stage: blocks of one width, behind a convolution that halves height and width.

use super::block::Block;
use super::config::ConvNextConfig;
use super::layers::{Norm, conv2d, norm2d};
use crate::LoraModel;
use crate::layers::Recompute;
use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Module, VarBuilder};

/// Maps (batch, channels, height, width) maps to its own width.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Stage {
    downsample: Option<Downsample>,
    blocks: Vec<Recompute<Block>>,
}

impl Stage {
    pub(super) fn new(index: usize, config: &ConvNextConfig, vb: VarBuilder) -> Result<Self> {
        let channels = config.dims[index];
        let before = config.dims[index.saturating_sub(1)];
        // The stem divides by 4, or leaves a factor of 2 to the first stage.
        let stride = match index {
            0 if config.stem_stride() != 2 => 1,
            _ => 2,
        };
        let downsample = (before != channels || stride > 1)
            .then(|| Downsample::new(before, channels, stride, config, vb.pp("downsample")));
        let blocks = (0..config.depths[index]).map(|block| {
            let vb = vb.pp("blocks").pp(block);
            Block::new(channels, config.kernel_sizes[index], config, vb).map(Recompute::new)
        });
        Ok(Self {
            downsample: downsample.transpose()?,
            blocks: blocks.collect::<Result<_>>()?,
        })
    }
}

#[lora::forward]
impl Module for Stage {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = match &self.downsample {
            Some(downsample) => downsample.forward(xs)?,
            None => xs.clone(),
        };
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        Ok(xs)
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Downsample(Norm, Conv2d);

impl Downsample {
    fn new(
        inputs: usize,
        outputs: usize,
        stride: usize,
        config: &ConvNextConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let norm = Norm::new(inputs, config, vb.pp(0))?;
        let patches = Conv2dConfig {
            stride,
            ..Default::default()
        };
        Ok(Self(
            norm,
            conv2d(inputs, outputs, stride, patches, vb.pp(1))?,
        ))
    }
}

#[lora::forward]
impl Module for Downsample {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        norm2d(xs, &self.0)?.apply(&self.1)
    }
}

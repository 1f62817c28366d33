//! ConvNeXt and ConvNeXt V2, <https://arxiv.org/abs/2201.03545>,
//! <https://arxiv.org/abs/2301.00808>.
//!
//! Variants, parameter names and numbers are those of timm, whose checkpoints load as they are.
//! Left out are dropout and stochastic depth, which are off in all of timm's variants, and output
//! strides other than 32.

mod block;
mod colour;
mod config;
mod head;
mod layers;
mod stage;
mod stem;
mod variants;

pub use config::{ActLayer, ConvNextConfig, NormLayer, StemType};

use super::{Architecture, Options, Variant};
use crate::LoraModel;
use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};
use head::Head;
use layers::{Norm, norm2d};
use stage::Stage;
use stem::Stem;

/// A ConvNeXt classifier of images.
///
/// `#[lora(rank)]` marks both layers of every block's MLP, `mlp.fc1` and `mlp.fc2`.
///
/// The base model computes with candle's layers: their grouped convolution is slow, and their norms
/// know no f64. [`to_frozen`](LoraModel::to_frozen) gives the same model with this crate's layers.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use lora::models::{self, Options, Weights, convnext::ConvNext};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let created = models::create::<ConvNext>(
///     "convnext_atto",
///     Weights::Random(0),
///     &Options::new().num_classes(10),
/// )?;
/// let model = created.model.to_lora(&LoraConfig::new(2))?;
/// let images = Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// assert_eq!(model.forward(&images)?.dims(), [1, 10]);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug, LoraModel)]
pub struct ConvNext {
    #[lora(config)]
    config: ConvNextConfig,
    stem: Stem,
    stages: Vec<Stage>,
    norm_pre: Option<Norm>,
    head: Head,
}

impl ConvNext {
    /// A model with the weights of `vb`, under timm's names.
    ///
    /// # Errors
    /// If the configuration is not valid, or a weight is missing or has another shape.
    pub fn new(config: &ConvNextConfig, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let stages = (0..4).map(|index| Stage::new(index, config, vb.pp("stages").pp(index)));
        let norm_pre = config
            .head_norm_first
            .then(|| Norm::new(config.dims[3], config, vb.pp("norm_pre")));
        Ok(Self {
            stem: Stem::new(config, vb.pp("stem"))?,
            stages: stages.collect::<Result<_>>()?,
            norm_pre: norm_pre.transpose()?,
            head: Head::new(config, vb.pp("head"))?,
            config: config.clone(),
        })
    }
}

#[lora::forward]
impl ConvNext {
    /// The configuration.
    pub fn config(&self) -> &ConvNextConfig {
        &self.config
    }

    /// The feature map in front of the head: from (batch, in_chans, height, width) to
    /// (batch, dims\[3\], height / 32, width / 32).
    ///
    /// # Errors
    /// If the images do not have the model's channels and dtype, or are too small.
    pub fn forward_features(&self, images: &Tensor) -> Result<Tensor> {
        let mut xs = self.stem.forward(images)?;
        for stage in &self.stages {
            xs = stage.forward(&xs)?;
        }
        match &self.norm_pre {
            Some(norm) => norm2d(&xs, norm),
            None => Ok(xs),
        }
    }

    /// The logits of a feature map, (batch, num_classes). Without a classifier, the pooled
    /// features.
    ///
    /// # Errors
    /// If the map does not have the model's channels.
    pub fn forward_head(&self, features: &Tensor) -> Result<Tensor> {
        self.head.forward(features)
    }
}

#[lora::forward]
impl Module for ConvNext {
    /// The logits of images, from (batch, in_chans, height, width) to (batch, num_classes).
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.forward_head(&self.forward_features(images)?)
    }
}

impl Architecture for ConvNext {
    type Config = ConvNextConfig;
    const CLASSIFIER: &'static str = "head.fc";

    fn variants() -> &'static [Variant<ConvNextConfig>] {
        variants::VARIANTS
    }

    fn with_options(config: &ConvNextConfig, options: &Options) -> ConvNextConfig {
        ConvNextConfig {
            num_classes: options.num_classes.unwrap_or(config.num_classes),
            in_chans: options.in_chans.unwrap_or(config.in_chans),
            ..config.clone()
        }
    }

    fn build(config: &ConvNextConfig, vb: VarBuilder) -> Result<Self> {
        Self::new(config, vb)
    }
}

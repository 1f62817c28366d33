//! The head: pooling, normalisation, classifier.

use super::config::ConvNextConfig;
use super::layers::{Norm, linear};
use crate::LoraModel;
use candle_core::{Result, Tensor};
use candle_nn::{Activation, Linear, Module, VarBuilder};

/// From (batch, channels, height, width) to (batch, classes), or to the pooled features of a model
/// without classes.
#[derive(Clone, Debug, LoraModel)]
pub(super) struct Head {
    norm: Option<Norm>,
    pre_logits: Option<PreLogits>,
    fc: Option<Linear>,
}

impl Head {
    pub(super) fn new(config: &ConvNextConfig, vb: VarBuilder) -> Result<Self> {
        let channels = config.dims[3];
        let norm = (!config.head_norm_first).then(|| Norm::new(channels, config, vb.pp("norm")));
        let hidden = config.head_hidden_size;
        let pre_logits = hidden.map(|hidden| PreLogits::new(channels, hidden, vb.pp("pre_logits")));
        let classes = config.num_classes;
        let features = hidden.unwrap_or(channels);
        let fc = (classes > 0).then(|| linear(features, classes, vb.pp("fc")));
        Ok(Self {
            norm: norm.transpose()?,
            pre_logits: pre_logits.transpose()?,
            fc: fc.transpose()?,
        })
    }
}

#[lora::forward]
impl Module for Head {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.mean((2, 3))?;
        if let Some(norm) = &self.norm {
            xs = norm.forward(&xs)?;
        }
        if let Some(pre_logits) = &self.pre_logits {
            xs = pre_logits.forward(&xs)?;
        }
        match &self.fc {
            Some(fc) => fc.forward(&xs),
            None => Ok(xs),
        }
    }
}

/// A hidden layer; its activation is GELU in every variant.
#[derive(Clone, Debug, LoraModel)]
struct PreLogits {
    fc: Linear,
    act: Activation,
}

impl PreLogits {
    fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        let fc = linear(inputs, outputs, vb.pp("fc"))?;
        Ok(Self {
            fc,
            act: Activation::Gelu,
        })
    }
}

#[lora::forward]
impl Module for PreLogits {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc)?.apply(&self.act)
    }
}

//! The MLP: act(gate)·up, then down.

use super::config::DecoderConfig;
use super::source::{Source, linear};
use crate::LoraModel;
use crate::blocks::{AsLinear, Mlp as Chain};
use crate::layers::QLinear;
use candle_core::{Result, Tensor};
use candle_nn::{Activation, Module};

/// An MLP under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
pub(super) enum Mlp {
    Apart {
        gate_proj: QLinear,
        up_proj: QLinear,
        down_proj: QLinear,
        act: Activation,
    },
    /// Phi-3's: gate and up are one layer, the gate first.
    Joined {
        gate_up_proj: QLinear,
        down_proj: QLinear,
        act: Activation,
    },
    /// An expert of Mixtral: gate, down and up.
    Numbered {
        w1: QLinear,
        w2: QLinear,
        w3: QLinear,
        act: Activation,
    },
}

impl Mlp {
    /// A layer's own MLP.
    pub(super) fn new(config: &DecoderConfig, from: Source) -> Result<Self> {
        let (width, inner, bias) = (
            config.hidden_size,
            config.intermediate_size,
            config.biases.mlp,
        );
        if !config.joined {
            return Self::apart(config, inner, from);
        }
        Ok(Self::Joined {
            gate_up_proj: linear(width, 2 * inner, bias, from.pp("gate_up_proj"))?,
            down_proj: linear(inner, width, bias, from.pp("down_proj"))?,
            act: config.hidden_act,
        })
    }

    pub(super) fn apart(config: &DecoderConfig, inner: usize, from: Source) -> Result<Self> {
        let (width, bias) = (config.hidden_size, config.biases.mlp);
        Ok(Self::Apart {
            gate_proj: linear(width, inner, bias, from.pp("gate_proj"))?,
            up_proj: linear(width, inner, bias, from.pp("up_proj"))?,
            down_proj: linear(inner, width, bias, from.pp("down_proj"))?,
            act: config.hidden_act,
        })
    }

    pub(super) fn numbered(config: &DecoderConfig, inner: usize, from: Source) -> Result<Self> {
        let width = config.hidden_size;
        Ok(Self::Numbered {
            w1: linear(width, inner, false, from.pp("w1"))?,
            w2: linear(inner, width, false, from.pp("w2"))?,
            w3: linear(width, inner, false, from.pp("w3"))?,
            act: config.hidden_act,
        })
    }
}

#[lora::forward]
impl Mlp {
    /// Whether the rows of a batch have adapters of their own here.
    pub(super) fn differs_by_row(&self) -> bool {
        let layers = match self {
            Self::Apart {
                gate_proj,
                up_proj,
                down_proj,
                ..
            } => [gate_proj, up_proj, down_proj],
            Self::Numbered { w1, w2, w3, .. } => [w1, w2, w3],
            Self::Joined {
                gate_up_proj,
                down_proj,
                ..
            } => [gate_up_proj, down_proj, down_proj],
        };
        layers.iter().any(|layer| layer.differs_by_row())
    }

    /// The chain that runs as one node.
    pub(super) fn chain(&self) -> Chain<'_> {
        match self {
            Self::Apart {
                gate_proj,
                up_proj,
                down_proj,
                act,
            } => Chain::gated(gate_proj, act, up_proj, down_proj),
            Self::Numbered { w1, w2, w3, act } => Chain::gated(w1, act, w3, w2),
            Self::Joined {
                gate_up_proj,
                down_proj,
                act,
            } => Chain::joined(gate_up_proj, act, down_proj),
        }
    }
}

#[lora::forward]
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.chain().forward(xs)
    }
}

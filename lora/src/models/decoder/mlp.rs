//! The MLP: act(gate)·up, then down.

use super::config::DecoderConfig;
use crate::LoraModel;
use crate::blocks::Mlp as Chain;
use crate::models::parts::linear;
use candle_core::{Result, Tensor};
use candle_nn::{Activation, Linear, Module, VarBuilder};

/// An MLP under the names of a checkpoint.
#[derive(Clone, Debug, LoraModel)]
pub(super) enum Mlp {
    Apart {
        gate_proj: Linear,
        up_proj: Linear,
        down_proj: Linear,
        act: Activation,
    },
    /// Phi-3's: gate and up are one layer, the gate first.
    Joined {
        gate_up_proj: Linear,
        down_proj: Linear,
        act: Activation,
    },
    /// An expert of Mixtral: gate, down and up.
    Numbered {
        w1: Linear,
        w2: Linear,
        w3: Linear,
        act: Activation,
    },
}

impl Mlp {
    /// A layer's own MLP.
    pub(super) fn new(config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        let (width, inner, bias) = (
            config.hidden_size,
            config.intermediate_size,
            config.biases.mlp,
        );
        if !config.joined {
            return Self::apart(config, inner, vb);
        }
        Ok(Self::Joined {
            gate_up_proj: linear(width, 2 * inner, bias, vb.pp("gate_up_proj"))?,
            down_proj: linear(inner, width, bias, vb.pp("down_proj"))?,
            act: config.hidden_act,
        })
    }

    pub(super) fn apart(config: &DecoderConfig, inner: usize, vb: VarBuilder) -> Result<Self> {
        let (width, bias) = (config.hidden_size, config.biases.mlp);
        Ok(Self::Apart {
            gate_proj: linear(width, inner, bias, vb.pp("gate_proj"))?,
            up_proj: linear(width, inner, bias, vb.pp("up_proj"))?,
            down_proj: linear(inner, width, bias, vb.pp("down_proj"))?,
            act: config.hidden_act,
        })
    }

    pub(super) fn numbered(config: &DecoderConfig, inner: usize, vb: VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        Ok(Self::Numbered {
            w1: linear(width, inner, false, vb.pp("w1"))?,
            w2: linear(inner, width, false, vb.pp("w2"))?,
            w3: linear(width, inner, false, vb.pp("w3"))?,
            act: config.hidden_act,
        })
    }
}

#[lora::forward]
impl Mlp {
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

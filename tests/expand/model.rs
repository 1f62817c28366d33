//! A model with each kind of field, for the snapshot of its expansion.

use candle_core::{Result, Tensor};
use candle_nn::{Activation, Embedding, LayerNorm, Linear, Module};
use lora::LoraModel;

/// A multi-layer perceptron.
#[derive(LoraModel)]
pub struct Mlp {
    /// Widens.
    #[lora(rank)]
    pub fc1: Linear,
    #[lora(rank = 16, alpha = 32.0)]
    fc2: Linear,
    act: Activation,
}

#[lora::forward]
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc1)?.apply(&self.act)?.apply(&self.fc2)
    }
}

/// The part of a block after attention.
#[derive(LoraModel)]
enum FeedForward<N> {
    Dense(Mlp),
    Experts {
        #[lora(trainable)]
        gate: Linear,
        experts: Vec<Mlp>,
        norm: N,
    },
    Identity,
}

#[lora::forward]
impl<N: Module> FeedForward<N> {
    fn experts(&self) -> usize {
        match self {
            FeedForward::Experts { experts, .. } => experts.len(),
            _ => 0,
        }
    }
}

#[derive(LoraModel)]
pub struct Net {
    #[lora(config = LoraNetConfig)]
    config: NetConfig,
    #[lora(name = "embed_tokens")]
    embed: Embedding,
    layers: Vec<FeedForward<LayerNorm>>,
    #[lora(flatten)]
    last: Mlp,
    #[lora(0(rank, name = "proj"), 1(skip))]
    heads: Vec<(Linear, Option<f64>)>,
    #[lora(skip)]
    positions: Vec<u32>,
}

/// A linear layer of its own.
#[derive(Clone, LoraModel)]
#[lora(linear)]
pub struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
    name: String,
}

/// How many means to take.
#[derive(Clone, Debug, LoraModel)]
pub enum Pooling {
    Mean,
    Last,
}

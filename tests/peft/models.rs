//! The twins of `fixtures/peft/models.py`.

use super::support::Weights;
use candle_core::{Device, Module, ModuleT, Result, Tensor};
use candle_nn::{
    BatchNorm, Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, LayerNorm, Linear,
};
use lora::LoraModel;

/// A base model that can be made of a file's weights.
pub trait Twin: LoraModel<Lora: Module> + Module {
    fn new(weights: &Weights) -> Self;
}

/// The same forward pass for a model and its LoRA model.
macro_rules! forward {
    ($base:ident, $lora:ident, |$self:ident, $xs:ident| $forward:block) => {
        impl Module for $base {
            fn forward(&$self, $xs: &Tensor) -> candle_core::Result<Tensor> $forward
        }

        impl Module for $lora {
            fn forward(&$self, $xs: &Tensor) -> candle_core::Result<Tensor> $forward
        }
    };
}
pub(crate) use forward;

#[derive(Clone, Debug, LoraModel)]
pub struct Mlp {
    pub fc1: Linear,
    pub norm: LayerNorm,
    pub fc2: Linear,
    pub head: Linear,
}

forward!(Mlp, LoraMlp, |self, xs| {
    let xs = xs.apply(&self.fc1)?.gelu_erf()?;
    xs.apply(&self.norm)?.apply(&self.fc2)?.apply(&self.head)
});

impl Twin for Mlp {
    fn new(weights: &Weights) -> Self {
        Self {
            fc1: weights.linear("fc1"),
            norm: LayerNorm::new(weights.get("norm.weight"), weights.get("norm.bias"), 1e-5),
            fc2: weights.linear("fc2"),
            head: weights.linear("head"),
        }
    }
}

#[derive(Clone, Debug, LoraModel)]
pub struct Block {
    pub fc1: Linear,
    pub fc2: Linear,
}

forward!(Block, LoraBlock, |self, xs| {
    xs + xs.apply(&self.fc1)?.gelu_erf()?.apply(&self.fc2)?
});

#[derive(Clone, Debug, LoraModel)]
pub struct Stack {
    pub layers: Vec<Block>,
    pub head: Linear,
}

forward!(Stack, LoraStack, |self, xs| {
    let mut xs = xs.clone();
    for layer in &self.layers {
        xs = layer.forward(&xs)?;
    }
    xs.apply(&self.head)
});

/// A stack inside a model, as a head's model holds the inner one.
#[derive(Clone, Debug, LoraModel)]
pub struct Deep {
    pub model: Stack,
}

forward!(Deep, LoraDeep, |self, xs| { self.model.forward(xs) });

impl Twin for Stack {
    fn new(weights: &Weights) -> Self {
        let block = |i| Block {
            fc1: weights.linear(&format!("layers.{i}.fc1")),
            fc2: weights.linear(&format!("layers.{i}.fc2")),
        };
        Self {
            layers: vec![block(0), block(1)],
            head: weights.linear("head"),
        }
    }
}

#[derive(Clone, Debug, LoraModel)]
pub struct Conv1dNet {
    pub conv: Conv1d,
    pub head: Linear,
}

forward!(Conv1dNet, LoraConv1dNet, |self, xs| {
    xs.apply(&self.conv)?.relu()?.mean(2)?.apply(&self.head)
});

impl Twin for Conv1dNet {
    fn new(weights: &Weights) -> Self {
        let config = Conv1dConfig {
            stride: 2,
            padding: 1,
            ..Default::default()
        };
        let (weight, bias) = weights.weight_and_bias("conv");
        Self {
            conv: Conv1d::new(weight, bias, config),
            head: weights.linear("head"),
        }
    }
}

#[derive(Clone, Debug, LoraModel)]
pub struct Conv2dNet {
    pub conv1: Conv2d,
    pub conv2: Conv2d,
    pub head: Linear,
}

forward!(Conv2dNet, LoraConv2dNet, |self, xs| {
    let xs = xs.apply(&self.conv1)?.relu()?.apply(&self.conv2)?;
    xs.mean((2, 3))?.apply(&self.head)
});

impl Twin for Conv2dNet {
    fn new(weights: &Weights) -> Self {
        let (weight, bias) = weights.weight_and_bias("conv1");
        // Three input channels, or four in two groups.
        let groups = if weight.dims()[1] == 2 { 2 } else { 1 };
        let config = Conv2dConfig {
            stride: 2,
            padding: 1,
            groups,
            ..Default::default()
        };
        let conv1 = Conv2d::new(weight, bias, config);
        let (weight, bias) = weights.weight_and_bias("conv2");
        Self {
            conv1,
            conv2: Conv2d::new(weight, bias, Conv2dConfig::default()),
            head: weights.linear("head"),
        }
    }
}

#[derive(Clone, Debug, LoraModel)]
pub struct EmbedNet {
    pub embed: Embedding,
    pub out: Linear,
}

forward!(EmbedNet, LoraEmbedNet, |self, ids| {
    ids.apply(&self.embed)?.apply(&self.out)
});

impl Twin for EmbedNet {
    fn new(weights: &Weights) -> Self {
        Self {
            embed: Embedding::new(weights.get("embed.weight"), 6),
            out: weights.linear("out"),
        }
    }
}

#[derive(Clone, Debug, LoraModel)]
pub struct Inner {
    pub b: Linear,
}

forward!(Inner, LoraInner, |self, xs| { xs.apply(&self.b) });

#[derive(Clone, Debug, LoraModel)]
pub struct Scored {
    pub score: Linear,
    pub a: Inner,
}

forward!(Scored, LoraScored, |self, xs| {
    xs.apply(&self.a)?.apply(&self.score)
});

#[derive(Clone, Debug, LoraModel)]
pub struct Normed {
    pub fc: Linear,
    pub norm: BatchNorm,
}

forward!(Normed, LoraNormed, |self, xs| {
    self.norm.forward_t(&xs.apply(&self.fc)?, false)
});

/// `b` and `a.b`: the name of the first means both.
#[derive(Clone, Debug, LoraModel)]
pub struct Nested {
    #[lora(rank = 2, alpha = 5.0)]
    pub b: Linear,
    #[lora(trainable)]
    pub a: Inner,
}

forward!(Nested, LoraNested, |self, xs| {
    xs.apply(&self.a)?.apply(&self.b)
});

fn square(factor: f64) -> Linear {
    let weight = Tensor::arange(0f32, 9.0, &Device::Cpu).unwrap();
    Linear::new((weight.reshape((3, 3)).unwrap() * factor).unwrap(), None)
}

impl Nested {
    pub fn new() -> Self {
        Self {
            b: square(0.1),
            a: Inner { b: square(0.2) },
        }
    }
}

impl Normed {
    pub fn new(mean: f32, var: f32) -> Result<Self> {
        let vector = |value: f32| Tensor::full(value, 3, &Device::Cpu);
        let (weight, bias) = (vector(1.5)?, vector(0.5)?);
        Ok(Self {
            fc: square(0.1),
            norm: BatchNorm::new(3, vector(mean)?, vector(var)?, weight, bias, 1e-5)?,
        })
    }
}

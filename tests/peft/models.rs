//! The twins of `fixtures/peft/models.py`.

use crate::support::Weights;
use candle_core::{Module, Result, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, LayerNorm, Linear};
use lora::{Builder, Cursor, CursorMut, Lora, LoraModel, LoraModule};

/// A base model that can be made of a file's weights.
pub trait Twin: LoraModel<Lora: Module> + Module {
    fn new(weights: &Weights) -> Self;
}

macro_rules! model {
    ($base:ident, $lora:ident { $($field:ident: $ty:ty),* }, |$self:ident, $xs:ident| $forward:block) => {
        #[derive(Clone, Debug)]
        pub struct $base { $(pub $field: $ty),* }

        #[derive(Clone, Debug)]
        pub struct $lora { $(pub $field: Lora<$ty>),* }

        impl LoraModel for $base {
            type Lora = $lora;
            fn adapt(&self, cx: &mut Builder<'_>) -> lora::Result<$lora> {
                Ok($lora { $($field: cx.field(stringify!($field), &self.$field)?),* })
            }
        }

        impl LoraModule for $lora {
            type Base = $base;
            fn to_base(&self) -> lora::Result<$base> {
                Ok($base { $($field: self.$field.to_base()?),* })
            }
            fn visit(&self, cursor: &mut Cursor<'_>) {
                $(cursor.field(stringify!($field), &self.$field);)*
            }
            fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
                $(cursor.field(stringify!($field), &mut self.$field);)*
            }
        }

        impl Module for $base {
            fn forward(&$self, $xs: &Tensor) -> Result<Tensor> $forward
        }

        impl Module for $lora {
            fn forward(&$self, $xs: &Tensor) -> Result<Tensor> $forward
        }
    };
}

model!(
    Mlp,
    LoraMlp {
        fc1: Linear,
        norm: LayerNorm,
        fc2: Linear,
        head: Linear
    },
    |self, xs| {
        let xs = xs.apply(&self.fc1)?.gelu_erf()?;
        xs.apply(&self.norm)?.apply(&self.fc2)?.apply(&self.head)
    }
);

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

model!(
    Block,
    LoraBlock {
        fc1: Linear,
        fc2: Linear
    },
    |self, xs| { xs + xs.apply(&self.fc1)?.gelu_erf()?.apply(&self.fc2)? }
);

model!(Stack, LoraStack { layers: Vec<Block>, head: Linear }, |self, xs| {
    let mut xs = xs.clone();
    for layer in &self.layers {
        xs = layer.forward(&xs)?;
    }
    xs.apply(&self.head)
});

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

model!(
    Conv1dNet,
    LoraConv1dNet {
        conv: Conv1d,
        head: Linear
    },
    |self, xs| { xs.apply(&self.conv)?.relu()?.mean(2)?.apply(&self.head) }
);

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

model!(
    Conv2dNet,
    LoraConv2dNet {
        conv1: Conv2d,
        conv2: Conv2d,
        head: Linear
    },
    |self, xs| {
        let xs = xs.apply(&self.conv1)?.relu()?.apply(&self.conv2)?;
        xs.mean((2, 3))?.apply(&self.head)
    }
);

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

model!(
    EmbedNet,
    LoraEmbedNet {
        embed: Embedding,
        out: Linear
    },
    |self, ids| { ids.apply(&self.embed)?.apply(&self.out) }
);

impl Twin for EmbedNet {
    fn new(weights: &Weights) -> Self {
        Self {
            embed: Embedding::new(weights.get("embed.weight"), 6),
            out: weights.linear("out"),
        }
    }
}

//! More twins of `fixtures/peft/models.py`.

use crate::peft::models::{Twin, forward};
use crate::peft::support::Weights;
use candle_core::{Module, Result, Tensor};
use candle_nn::{Embedding, Linear};
use lora::LoraModel;
use lora::layers::{TransposedLinear, Weight};

/// The head computes with the table that it reads of the embedding: with the adapted one. PEFT does so
/// only in the merged model.
#[derive(Clone, Debug, LoraModel)]
pub struct Tied {
    pub embed: Embedding,
    pub fc: Linear,
}

forward!(Tied, LoraTied, |self, ids| {
    let xs = ids.apply(&self.embed)?.apply(&self.fc)?.relu()?;
    xs.broadcast_matmul(&self.embed.embeddings().t()?)
});

impl Twin for Tied {
    fn new(weights: &Weights) -> Self {
        Self {
            embed: Embedding::new(weights.get("embed.weight"), 6),
            fc: weights.linear("fc"),
        }
    }
}

/// The same with a head that shares only the base weight, as PEFT's does before it is merged.
#[derive(Clone, Debug, LoraModel)]
pub struct TiedBase {
    pub embed: Embedding,
    pub fc: Linear,
    #[lora(skip)]
    table: Tensor,
}

forward!(TiedBase, LoraTiedBase, |self, ids| {
    let xs = ids.apply(&self.embed)?.apply(&self.fc)?.relu()?;
    xs.broadcast_matmul(&self.table.t()?)
});

impl Twin for TiedBase {
    fn new(weights: &Weights) -> Self {
        let table = weights.get("embed.weight");
        Self {
            embed: Embedding::new(table.clone(), 6),
            fc: weights.linear("fc"),
            table,
        }
    }
}

/// Weights as (in, out).
#[derive(Clone, Debug, LoraModel)]
pub struct Transposed {
    pub fc1: TransposedLinear,
    pub fc2: TransposedLinear,
}

forward!(Transposed, LoraTransposed, |self, xs| {
    xs.apply(&self.fc1)?.gelu_erf()?.apply(&self.fc2)
});

impl Twin for Transposed {
    fn new(weights: &Weights) -> Self {
        let linear = |name| {
            let (weight, bias) = weights.weight_and_bias(name);
            TransposedLinear::new(weight, bias).unwrap()
        };
        Self {
            fc1: linear("fc1"),
            fc2: linear("fc2"),
        }
    }
}

/// A head of its own that shares the embedding's tensor.
#[derive(Clone, Debug, LoraModel)]
pub struct TiedLm {
    pub embed_tokens: Embedding,
    pub fc: Linear,
    pub lm_head: Linear,
}

forward!(TiedLm, LoraTiedLm, |self, ids| {
    let xs = ids.apply(&self.embed_tokens)?.apply(&self.fc)?.relu()?;
    xs.apply(&self.lm_head)
});

impl Twin for TiedLm {
    fn new(weights: &Weights) -> Self {
        let table = weights.get("embed_tokens.weight");
        Self {
            embed_tokens: Embedding::new(table.clone(), 6),
            fc: weights.linear("fc"),
            lm_head: Linear::new(table, None),
        }
    }
}

/// A head with a weight of its own.
#[derive(Clone, Debug, LoraModel)]
pub struct UntiedLm {
    pub embed_tokens: Embedding,
    pub fc: Linear,
    pub lm_head: Linear,
}

forward!(UntiedLm, LoraUntiedLm, |self, ids| {
    let xs = ids.apply(&self.embed_tokens)?.apply(&self.fc)?.relu()?;
    xs.apply(&self.lm_head)
});

impl Twin for UntiedLm {
    fn new(weights: &Weights) -> Self {
        Self {
            embed_tokens: Embedding::new(weights.get("embed_tokens.weight"), 6),
            fc: weights.linear("fc"),
            lm_head: Linear::new(weights.get("lm_head.weight"), None),
        }
    }
}

/// Three experts' weights in one tensor each: (expert, out, in).
#[derive(Clone, Debug, LoraModel)]
pub struct Experts {
    pub up: Weight,
    pub down: Weight,
}

#[lora::forward]
impl Experts {
    fn forward(&self, xs: &Tensor, shares: &Tensor) -> Result<Tensor> {
        // (expert, batch, out)
        let hidden = xs.broadcast_left(self.up.tensor()?.dim(0)?)?.contiguous()?;
        let hidden = hidden.matmul(&self.up.tensor()?.t()?)?.relu()?;
        let ys = hidden.matmul(&self.down.tensor()?.t()?)?;
        ys.broadcast_mul(&shares.t()?.unsqueeze(2)?)?.sum(0)
    }
}

/// Shares by softmax of the router, then the experts' weighted sum.
#[derive(Clone, Debug, LoraModel)]
pub struct Moe {
    pub router: Linear,
    pub experts: Experts,
}

forward!(Moe, LoraMoe, |self, xs| {
    let shares = lora::ops::softmax_last_dim(&xs.apply(&self.router)?)?;
    self.experts.forward(xs, &shares)
});

impl Twin for Moe {
    fn new(weights: &Weights) -> Self {
        let weight = |name| Weight::new(weights.get(name)).unwrap();
        Self {
            router: weights.linear("router"),
            experts: Experts {
                up: weight("experts.up"),
                down: weight("experts.down"),
            },
        }
    }
}

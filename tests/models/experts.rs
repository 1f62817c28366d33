//! A mixture of experts: an enum of feed-forwards in a `Vec`.

use super::life::{Run, adapted, linear, linear_no_bias, live};
use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Activation, Linear, Module};
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::fixed;

#[derive(Clone, Debug, LoraModel)]
struct Mlp {
    #[lora(rank)]
    up: Linear,
    act: Activation,
    #[lora(rank)]
    down: Linear,
}

#[lora::forward]
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.up)?.apply(&self.act)?.apply(&self.down)
    }
}

#[derive(Clone, Debug, LoraModel)]
enum FeedForward {
    Dense(Mlp),
    Sparse {
        gate: Linear,
        experts: Vec<Mlp>,
        top: usize,
    },
    Identity,
}

#[lora::forward]
impl Module for FeedForward {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            FeedForward::Dense(mlp) => mlp.forward(xs),
            FeedForward::Sparse { gate, experts, top } => {
                let weights = ops::softmax_last_dim(&gate.forward(xs)?)?;
                // Every row goes to its best experts; the others have weight 0.
                let order = weights.detach().arg_sort_last_dim(false)?;
                let rank = order.arg_sort_last_dim(true)?;
                let chosen = rank.lt(*top as u32)?.to_dtype(weights.dtype())?;
                let weights = (weights * chosen)?;
                let mut sum = xs.zeros_like()?;
                for (index, expert) in experts.iter().enumerate() {
                    let weight = weights.narrow(D::Minus1, index, 1)?;
                    sum = (sum + expert.forward(xs)?.broadcast_mul(&weight)?)?;
                }
                Ok(sum)
            }
            Self::Identity => Ok(xs.clone()),
        }
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Experts {
    layers: Vec<FeedForward>,
}

#[lora::forward]
impl Run for Experts {
    fn run(&mut self) -> Result<Tensor> {
        let mut xs = fixed((5, 6), DType::F32, 3);
        for layer in &self.layers {
            xs = (layer.forward(&xs)? + xs)?;
        }
        Ok(xs)
    }
}

fn mlp(seed: usize) -> Mlp {
    Mlp {
        up: linear(6, 12, seed),
        act: Activation::Silu,
        down: linear(12, 6, seed + 2),
    }
}

#[test]
fn experts() {
    let base = Experts {
        layers: vec![
            FeedForward::Dense(mlp(1)),
            FeedForward::Identity,
            FeedForward::Sparse {
                gate: linear_no_bias(6, 3, 10),
                experts: vec![mlp(20), mlp(30), mlp(40)],
                top: 2,
            },
        ],
    };
    let model = live(base, &LoraConfig::new(2));
    let adapted = adapted(&model);
    assert_eq!(adapted.len(), 2 + 6);
    assert_eq!(
        (&*adapted[0], &*adapted[2]),
        ("layers.0.up", "layers.2.experts.0.up")
    );
    assert!(matches!(model.layers[1], LoraFeedForward::Identity));
    assert_eq!(model.summary().rows.len(), 2 + 1 + 6);
}

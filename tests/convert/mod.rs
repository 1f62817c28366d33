//! From a model to its LoRA model, and what carries over.

use candle_core::DType;
use candle_nn::{LayerNorm, Linear};
use lora_tests::fixed;
use std::collections::BTreeMap;

mod calibrated;
mod names;
mod settings;
mod weights;

pub const F32: DType = DType::F32;

pub fn linear(seed: usize) -> Linear {
    Linear::new(fixed((4, 4), F32, seed), Some(fixed(4, F32, seed + 1)))
}

pub type Layers = BTreeMap<&'static str, (Vec<BTreeMap<&'static str, Linear>>, LayerNorm)>;

/// Paths `net.0.{0,1}.{fc1,fc2}` and a norm at `net.1`.
pub fn model() -> Layers {
    let block = |seed| BTreeMap::from([("fc1", linear(seed)), ("fc2", linear(seed + 7))]);
    let norm = LayerNorm::new(fixed(4, F32, 1), fixed(4, F32, 2), 1e-5);
    BTreeMap::from([("net", (vec![block(1), block(20)], norm))])
}

//! The ops against PyTorch and their definitions, in every form that a tensor takes, and the graph
//! that they make.

mod attention;
mod blocks;
mod candle;
mod convolutions;
mod dora;
mod errors;
mod fixtures;
mod gated;
pub mod gradients;
mod graph;
mod halves;
mod losses;
mod norms;
mod self_attention;
mod threads;
mod views;
mod visible;

use candle_core::{DType, Result, Tensor, Var};
use lora::{LoraModule, ops};
use lora_tests::fixed;

/// Seeded anew, each pass drops the same numbers.
fn seeded<T>(f: impl FnOnce() -> T) -> T {
    ops::seed_dropout(23);
    f()
}

/// Value, and the gradients of x and of all adapters that have one.
fn numbers<M: LoraModule>(
    model: &M,
    x: &Tensor,
    forward: impl Fn(&M, &Tensor) -> Result<Tensor>,
) -> Vec<Tensor> {
    let x = Var::from_tensor(x).unwrap();
    let y = seeded(|| forward(model, &x)).unwrap();
    assert_eq!(y.dtype(), x.dtype());
    let weights = fixed(y.shape(), DType::F64, 8);
    let loss = (y.to_dtype(DType::F64).unwrap() * weights).unwrap();
    // Not the model's own check: some layers of the model have no part in it.
    let grads = loss.sum_all().unwrap().backward().unwrap();
    let mut all = vec![y.detach(), grads.get(&x).unwrap().clone()];
    let vars = model.trainable_vars();
    all.extend(vars.iter().filter_map(|var| grads.get(var).cloned()));
    all
}

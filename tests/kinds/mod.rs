//! What real models hold. Each kind is a small model that lives its whole life: converted, trained, saved,
//! loaded, merged, turned back.
//!
//! | kind | where |
//! |---|---|
//! | a wrapper of a layer under `rank`; a struct called `Model` | `wrappers` |
//! | getters and methods that name types of this and other modules | `follow` |
//! | fields without layers: closures, locks, cells, shared values | `shared` |
//! | quantised weights | `quantised` |
//! | learned tensors without a layer around them | `tensors` |
//! | enums, with variants of any name | `enums` |
//! | keywords in calls of macros | `macros` |
//! | tuples with attributes for their parts | `parts` |
//! | methods of every form, lifetimes, conditions | `methods` |
//! | code that is no model, called by one | `plain` |
//! | `Sequential` and trait objects | `layers/sequential.rs` |
//! | transposed convolutions, `PReLU` | `layers/transposed.rs` |
//! | recurrent layers | `layers/rnn.rs` |
//! | caches of keys and values | `layers/caches.rs` |

use candle_core::{DType, Module, Tensor};
use candle_nn::{LayerNorm, Linear};
use lora::{Lora, LoraConfig, LoraModel, LoraModule};
use lora_tests::{fixed, whole_life};

mod enums;
mod follow;
mod macros;
mod methods;
mod parts;
mod plain;
mod quantised;
mod shared;
mod tensors;
mod wrappers;

pub const F32: DType = DType::F32;

pub fn linear(inputs: usize, outputs: usize, seed: usize) -> Linear {
    let bias = fixed(outputs, F32, seed + 1);
    Linear::new(fixed((outputs, inputs), F32, seed), Some(bias))
}

pub fn norm(width: usize, seed: usize) -> LayerNorm {
    LayerNorm::new(fixed(width, F32, seed), fixed(width, F32, seed + 1), 1e-5)
}

pub fn config() -> LoraConfig {
    LoraConfig::new(2).seed(1)
}

/// [`whole_life`] of a model with one input.
#[track_caller]
pub fn live<M>(what: &str, net: &M, xs: &Tensor) -> Lora<M>
where
    M: LoraModel + Module,
    M::Lora: Module,
{
    whole_life(
        what,
        net,
        &config(),
        |net| net.forward(xs),
        |model| model.forward(xs),
    )
}

/// The layers with an adapter.
pub fn adapted<M: LoraModule>(model: &M) -> Vec<String> {
    let layers = model.layer_status().into_iter();
    layers.map(|layer| layer.name).collect()
}

//! Optimisers for adapters, and the tools between the backward pass and the step.
//!
//! | to | use |
//! |---|---|
//! | train with groups of parameters, and resume | [`AdamW`], [`Group`], [`weight_decay_groups`] |
//! | train B faster than A | [`LoraPlus`] |
//! | train B alone, in the direction of the full gradient | [`LoraFa`] |
//! | make steps independent of how B·A is split into B and A | [`Riemannian`] |
//! | bound the gradients | [`clip_grad_norm`], [`clip_grad_value`] |
//! | make one step of several micro-batches | [`Accumulator`] |
//! | let the learning rate rise and fall | [`Schedule`] |
//! | stop, and go on exactly there | [`save_state`], [`load_state`] |
//!
//! Any optimiser of candle's works with [`LoraModule::trainable_vars`](crate::LoraModule) as well.
//! Those here check more: that the backward pass reached their parameters, that gradients are finite,
//! and that they were made after the last change of the model.
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use candle_nn::{Linear, Optimizer};
//! use lora::optim::{Accumulator, AdamW, Schedule, clip_grad_norm, weight_decay_groups};
//! use lora::{LoraConfig, LoraModel, LoraModule};
//!
//! let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
//! let model = Linear::new(weight, None).to_lora(&LoraConfig::new(2))?;
//! let mut optimizer = AdamW::grouped(&model, weight_decay_groups(&model, 1e-3, 0.01))?;
//! let schedule = Schedule::cosine(10).warmup(2);
//! let input = Tensor::ones((1, 3), DType::F32, &Device::Cpu)?;
//! for step in 0..10 {
//!     let mut sum = Accumulator::default();
//!     for _ in 0..4 {
//!         sum.add(&model.backward(&model.forward(&input)?.sqr()?.mean_all()?)?)?;
//!     }
//!     let mut grads = sum.mean()?;
//!     clip_grad_norm(&model, &mut grads, 1.0)?;
//!     optimizer.set_lr_factor(schedule.factor(step));
//!     optimizer.step(&grads)?;
//! }
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("optimizer.safetensors");
//! optimizer.save_state(&path)?;
//! optimizer.load_state(&path)?;
//! # Ok::<(), lora::Error>(())
//! ```

mod accumulate;
mod adamw;
mod checked;
mod clip;
mod group;
mod inverse;
mod lora_fa;
mod lora_plus;
mod pairs;
mod resume;
mod riemannian;
mod schedule;
mod state;
mod trained;

pub use accumulate::Accumulator;
pub use adamw::AdamW;
pub use clip::{clip_grad_norm, clip_grad_value};
pub use group::{Group, weight_decay_groups};
pub use lora_fa::LoraFa;
pub use lora_plus::LoraPlus;
pub use resume::{AsAdamW, load_state, save_state};
pub(crate) use resume::{load_model, save_state_with};
pub use riemannian::Riemannian;
pub use schedule::Schedule;

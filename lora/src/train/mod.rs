//! Training: one loop, from batches to a tuned model, that can be stopped at any step and goes on there.
//!
//! ```
//! use candle_core::{Device, Module, Tensor};
//! use candle_nn::{Linear, ParamsAdamW, loss::mse};
//! use lora::data::BatchOptions;
//! use lora::optim::AdamW;
//! use lora::train::{Examples, TrainOptions, Trainer};
//! use lora::{LoraConfig, LoraModel};
//!
//! #[derive(Clone, Debug, LoraModel)]
//! struct Mlp {
//!     fc1: Linear,
//!     fc2: Linear,
//! }
//!
//! #[lora::forward]
//! impl Module for Mlp {
//!     fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
//!         xs.apply(&self.fc1)?.tanh()?.apply(&self.fc2)
//!     }
//! }
//!
//! // Sixteen points of a parabola; a model that gives another curve.
//! let xs: Vec<f32> = (0..16).map(|x| x as f32 / 8.0 - 1.0).collect();
//! let weight = |shape: &[usize], seed: f32| {
//!     let values = (0..32).map(|i| 2.0 * (i as f32 * seed).fract() - 1.0);
//!     Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)
//! };
//! let mlp = Mlp {
//!     fc1: Linear::new(weight(&[32, 1], 0.618)?, Some(weight(&[32], 0.414)?)),
//!     fc2: Linear::new(weight(&[1, 32], 0.732)?, None),
//! };
//! let config = LoraConfig::new(1).target_modules(["fc1", "fc2"]).seed(1);
//! let mut model = mlp.to_lora(&config)?;
//!
//! let mut batches = Examples::new([1; 16], &BatchOptions::new(4), |numbers| {
//!     let xs: Vec<f32> = numbers.iter().map(|&number| xs[number]).collect();
//!     let xs = Tensor::new(xs, &Device::Cpu)?.unsqueeze(1)?;
//!     Ok((xs.clone(), xs.sqr()?))
//! })?;
//! let params = ParamsAdamW { lr: 2e-2, ..Default::default() };
//! let trained = Trainer::new(TrainOptions::epochs(60)).run(
//!     &mut model,
//!     &mut batches,
//!     |model| AdamW::for_model(model, params.clone()),
//!     |model, (xs, ys)| Ok(mse(&model.forward(xs)?, ys)?),
//! )?;
//! assert_eq!(trained.steps, 60 * 4);
//! assert!(trained.losses[0] > 0.5 && trained.losses[59] < 2e-3, "{:?}", trained.losses);
//! # Ok::<(), lora::Error>(())
//! ```
//!
//! - How: [`TrainOptions`]: the length, accumulation, clipping, the learning rate's course, evaluation,
//!   checkpoints, patience.
//! - With what: any optimiser of [`optim`](crate::optim), batches from any [`Source`], a loss that is a
//!   closure; a [`Dataset`] is batches, loss and metrics in one. A [`Loss`] says how many tokens or examples the loss is a mean over.
//! - Held-out data: [`Trainer::evaluate`], [`mean_loss`].
//! - Files: [`Trainer::output`]: checkpoints, a log of JSON lines, the curves as a picture.
//!   [`ModelCard`] for the adapter's folder.
//! - Stop and go on: [`Trainer::resume`], [`Trainer::stop_when`]. A run that was stopped or killed at any
//!   moment ends with the same weights, bit for bit on one machine with the same number of threads.
//! - On the screen: [`Trainer::watch`]; with the feature `train-ui` `Progress`, a bar on a terminal and
//!   lines elsewhere, `Trainer::tensorboard`, and `Interrupt`, which catches Ctrl-C.
//!
//! What cannot learn is refused: a model without anything to train, parameters that the loss does not
//! reach, gradients that are not the slope of the loss, a loss that is NaN.

mod card;
mod checkpoint;
mod curves;
mod evaluate;
mod event;
#[cfg(feature = "train-ui")]
mod interrupt;
mod log;
mod loss;
mod options;
#[cfg(feature = "train-ui")]
mod progress;
mod run;
mod sets;
mod source;
mod state;
#[cfg(feature = "train-ui")]
mod tensorboard;
mod trained;
mod trainer;

pub use card::ModelCard;
pub use evaluate::{Evaluation, Metrics, mean_loss};
pub use event::{Event, Plan, Step};
#[cfg(feature = "train-ui")]
pub use interrupt::Interrupt;
pub use loss::{Loss, Unit};
pub use options::{Best, Course, Every, Length, TrainOptions};
#[cfg(feature = "train-ui")]
pub use progress::Progress;
pub use sets::{Dataset, DatasetBatches, Language};
#[cfg(feature = "text")]
pub use sets::{PairBatch, PairLoss, TextBatch, TextClasses, TextPairs};
pub use source::{Examples, Source};
pub use trained::{Ended, Trained};
pub use trainer::Trainer;

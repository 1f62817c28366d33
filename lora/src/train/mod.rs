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
//! - Several processes and machines: [`Trainer::parallel`].
//! - On the screen: [`Trainer::watch`]; with the feature `train-ui` `Progress`, a bar on a terminal and
//!   lines elsewhere, `Trainer::tensorboard`, and `Interrupt`, which catches Ctrl-C.
//!
//! What cannot learn is refused: a model without anything to train, parameters that the loss does not
//! reach, gradients that are not the slope of the loss, a loss that is NaN.
//!
//! # Several ranks
//!
//! [`Parallel`] trains on several machines, or in several processes of one: each is a rank, and `mpirun -n 4`
//! starts four with the feature `mpi`. **The number of ranks changes the time of a run and nothing else.** A
//! batch is the batch of all ranks, [`BatchOptions::size`](crate::data::BatchOptions::size) counts its
//! examples, and each rank computes its [`Share`] of them. So four ranks with batches of 32 take the steps of
//! one rank with batches of 32, up to the rounding of sums, and a run goes on with any other number of ranks.
//!
//! - **At the start** the ranks get the adapters, the heads and the optimiser of rank 0, and compare a hash of
//!   them. A rank with another base model, other data or other options is refused.
//! - **A step** packs the gradients into one buffer of f32, weighted by their tokens or examples, and sums it
//!   over the ranks. All that follows is the same on each: clipping, the optimiser, the loss that is shown.
//! - **Rank 0** evaluates, reports to the watchers, logs and saves. The others need no output, and learn
//!   what the evaluation found. If any rank is asked to stop, all do.
//! - **Dropout** differs from rank to rank, and is drawn anew in each step: a run that goes on with as many
//!   ranks ends with the same bits.
//! - **An error or a lost rank** stops all, with its reason. [`scaling`] says how, and how to stop ranks.
//!
//! Statistics of a batch norm are those of the base model, here as with one rank, so there is nothing to sum.
//! A loss that compares the examples of a batch with each other, as
//! [`MultipleNegativesRanking`](crate::losses::MultipleNegativesRanking) does, compares those of a rank's
//! share. [`scaling`] says what several ranks gain, and what they need of the network.
//!
//! Ranks that are threads show it without a network:
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use candle_nn::Linear;
//! use lora::data::BatchOptions;
//! use lora::optim::LoraPlus;
//! use lora::train::{Examples, Loss, Parallel, TrainOptions, Trainer};
//! use lora::{LoraConfig, LoraModel};
//!
//! // The work of a rank; with MPI it is `Parallel::mpi(train)`, in a program that `mpirun` starts.
//! let train = |parallel: &Parallel| -> lora::Result<Vec<f64>> {
//!     let base = Linear::new(Tensor::ones((2, 3), DType::F32, &Device::Cpu)?, None);
//!     let mut model = base.to_lora(&LoraConfig::new(2).seed(0))?;
//!     let mut batches = Examples::new([1; 10], &BatchOptions::new(4), |numbers| {
//!         let values: Vec<f32> = numbers.iter().map(|&number| number as f32).collect();
//!         Ok(Tensor::new(values, &Device::Cpu)?.unsqueeze(1)?.broadcast_as((numbers.len(), 3))?)
//!     })?;
//!     let trained = Trainer::new(TrainOptions::epochs(3)).parallel(parallel).run(
//!         &mut model,
//!         &mut batches,
//!         |model| LoraPlus::new(1e-2, 4.0).adamw(model),
//!         |model, xs| {
//!             let loss = model.forward(xs)?.sqr()?.mean_all()?;
//!             Ok(Loss::over_examples(loss, xs.dim(0)?))
//!         },
//!     )?;
//!     if parallel.is_first() {
//!         // Here rank 0 would save the adapter.
//!     }
//!     Ok(trained.losses)
//! };
//! let one = train(&Parallel::alone())?;
//! for losses in Parallel::threads(2, train)? {
//!     assert!((losses[2] - one[2]).abs() < 1e-4 * one[2]);
//! }
//! # Ok::<(), lora::Error>(())
//! ```

mod begin;
mod card;
mod checkpoint;
mod curves;
mod evaluate;
mod event;
mod gradients;
#[cfg(feature = "train-ui")]
mod interrupt;
mod log;
mod loss;
mod options;
mod parallel;
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

#[doc = include_str!("../../docs/scaling.md")]
pub mod scaling {}

pub use card::ModelCard;
pub use evaluate::{Evaluation, Metrics, mean_loss};
pub use event::{Event, Plan, Step};
#[cfg(feature = "train-ui")]
pub use interrupt::Interrupt;
pub use loss::{Loss, Unit};
pub use options::{Best, Course, Every, Length, TrainOptions};
pub use parallel::{Collective, Parallel, Share, Traffic};
#[cfg(feature = "train-ui")]
pub use progress::Progress;
pub use sets::{Dataset, DatasetBatches, Language};
#[cfg(feature = "text")]
pub use sets::{PairBatch, PairLoss, TextBatch, TextClasses, TextPairs};
pub use source::{Examples, Source};
pub use trained::{Ended, Trained};
pub use trainer::Trainer;

//! The LoRA counterpart of any [candle](candle_core) model, derived at compile time.
//!
//! Low-rank adaptation, <https://arxiv.org/abs/2106.09685>, freezes a model's weights and trains a
//! small update B·A beside some of them. This crate maps a model's type to the type of its LoRA
//! model: [`LoraModel`] is that map, and [`#[derive(LoraModel)]`](derive@LoraModel) writes it for
//! structs and enums of candle's layers. The guide [`annotate`] takes four models from the file as written
//! for candle to a trained adapter.
//!
//! ```
//! use candle_core::{DType, Device, Result, Tensor};
//! use candle_nn::{Linear, Module, Optimizer, ParamsAdamW};
//! use lora::optim::AdamW;
//! use lora::{LoraConfig, LoraModel, LoraModule};
//!
//! #[derive(Clone, Debug, LoraModel)]
//! struct Mlp {
//!     #[lora(rank)]
//!     fc1: Linear,
//!     fc2: Linear,
//! }
//!
//! #[lora::forward]
//! impl Module for Mlp {
//!     fn forward(&self, xs: &Tensor) -> Result<Tensor> {
//!         xs.apply(&self.fc1)?.relu()?.apply(&self.fc2)
//!     }
//! }
//!
//! let weight = |out, input| Tensor::ones((out, input), DType::F32, &Device::Cpu);
//! let (fc1, fc2) = (Linear::new(weight(4, 3)?, None), Linear::new(weight(2, 4)?, None));
//! let mlp = Mlp { fc1, fc2 };
//! let mut model = mlp.to_lora(&LoraConfig::new(2))?; // a LoraMlp
//! assert_eq!(model.summary().totals(), "34 parameters in all, 14 trainable, 20 not");
//! let mut optimizer = AdamW::for_model(&model, ParamsAdamW::default())?;
//! let loss = model.forward(&weight(1, 3)?)?.sum_all()?;
//! let grads = model.backward(&loss)?; // an error names every adapter without a gradient
//! optimizer.step(&grads)?;
//! model.merge()?;
//! let tuned: Mlp = model.to_base()?;
//! # let _ = tuned;
//! # Ok::<(), lora::Error>(())
//! ```
//!
//! - What to adapt, with which rank: [`LoraConfig`], and the attributes of the derive.
//! - Paths as the checkpoint has them: [`Names`].
//! - Initial values: [`Init`]. Those that depend on data: [`LoraModel::calibrate`].
//! - What a LoRA model can do: the methods of [`LoraModule`].
//! - Several adapters in one model: [`add_adapter`](LoraModule::add_adapter),
//!   [`set_active`](LoraModule::set_active). An adapter for each row of a batch:
//!   [`for_rows`](LoraModule::for_rows). Several combined into one:
//!   [`add_weighted_adapter`](LoraModule::add_weighted_adapter).
//! - The state of the adapters: [`LayerStatus`], [`ModelStatus`].
//! - The layers themselves, for use by hand: [`layers`].
//! - Functions with candle's signatures that pass the gradient where candle's do not: [`ops`].
//! - Losses of classes, numbers and embeddings: [`losses`]. How good a model is: [`metrics`].
//! - Optimisers, LoRA+ and LoRA-FA among them, schedules, gradient clipping: [`optim`]. Training that
//!   stops and goes on exactly there: [`optim::save_state`], [`optim::load_state`].
//! - The loop around them, with evaluation, checkpoints, logs and early stopping: [`train`].
//! - The seed of what training draws: [`seed_dropout`]; of initial values: [`LoraConfig::seed`].
//! - Adapters as files, and merged into checkpoints: [`peft`]. Weights from model to model:
//!   [`transfer_weights`].
//! - Chains of layers as one node: [`blocks`]. Parts that keep no inner values: [`checkpoint`].
//! - Ready models: [`models`]. Language models: [`models::decoder`], [`models::generate`].
//! - Training data, from JSONL files to batches: [`data`]. Tokenizers, chat templates and generated text:
//!   `text`, a feature. Folders of images: `images`, a feature.
//! - Where the time of a step goes: [`profile`]. Memory that a program keeps from step to step:
//!   [`memory`].
//! - From data of your own to a prediction, step by step: [`guide`]. What a message means: [`troubleshooting`].
//! - PEFT's calls and their counterparts: [`coming_from_peft`]; those of transformers' Trainer:
//!   [`coming_from_trainer`]; of mlx-lm: [`coming_from_mlx_lm`].
//!
//! # The derive's attributes
//!
//! | on | attribute | meaning |
//! |---|---|---|
//! | a type | `#[lora(name = "LoraX")]` | name of the generated type |
//! | | `#[lora(derive(PartialEq))]` | derives on the generated type, beside `Clone` and `Debug` |
//! | | `#[lora(bound = "..")]` | where-clause of the generated type, in place of the inferred one |
//! | | `#[lora(plain)]` | the type holds no layers and is its own LoRA type |
//! | | `#[lora(linear)]`, `#[lora(linear(weight = ws, bias = bs))]` | a linear layer of tensors, which the library computes |
//! | | `#[lora(crate = "..")]` | path of this crate, where it is re-exported |
//! | a field | `#[lora(rank)]`, `#[lora(rank = 16, alpha = 32.0, dropout = 0.1)]` | a target by default, with values of its own |
//! | | `#[lora(trainable)]` | trained in full, saved with the adapter |
//! | | `#[lora(skip)]` | a field of any type but a layer, whose value is cloned |
//! | | `#[lora(routed)]` | parts that a batch may not reach, such as experts: no gradient there is no error |
//! | | `#[lora(config)]`, `#[lora(config = LoraNetConfig)]` | the model's configuration, which becomes [`WithLora`]; the second form names the type |
//! | | `#[lora(name = "..")]` | name in parameter paths |
//! | | `#[lora(flatten)]` | adds nothing to parameter paths |
//! | | `#[lora(0(rank), 1(skip))]` | attributes for the parts of a tuple |
//! | an impl | `#[lora::forward]` | also implements it for the LoRA type |
//! | a method in such an impl | `#[lora(skip)]` | on the base type only |
//!
//! # Features
//!
//! `hub` adds pretrained weights from the Hugging Face hub; `text` adds tokenizers, chat templates and
//! generated text; `images` adds folders of images; `train-ui` adds progress bars, files for TensorBoard
//! and Ctrl-C to [`train`], `mpi` training on several machines; `cli` is the command `lora`; `mimalloc` is an
//! allocator for [`memory`]; `cuda`, `metal`, `mkl` and `accelerate` are candle's.

extern crate self as lora;

mod adapter;
#[doc = include_str!("../docs/annotate.md")]
pub mod annotate {}
pub mod blocks;
#[doc = include_str!("../docs/coming-from-peft.md")]
pub mod coming_from_peft {}
#[doc = include_str!("../docs/coming-from-mlx-lm.md")]
pub mod coming_from_mlx_lm {}
#[doc = include_str!("../docs/coming-from-trainer.md")]
pub mod coming_from_trainer {}
#[doc = include_str!("../docs/command.md")]
pub mod command {}
mod config;
mod convert;
pub mod data;
mod error;
mod file;
mod gguf;
// The page names other pages by their files. These links, which come first, are those of the documentation.
#[doc = "[the command]: crate::command"]
#[doc = "[the guide to annotation]: crate::annotate"]
#[doc = "[troubleshooting]: crate::troubleshooting"]
#[doc = ""]
#[doc = include_str!("../docs/guide.md")]
pub mod guide {}
#[cfg(feature = "images")]
pub mod images;
mod init;
mod kernels;
pub mod layers;
mod linalg;
pub mod losses;
mod manage;
pub mod memory;
pub mod metrics;
pub mod models;
pub mod ops;
pub mod optim;
mod path;
pub mod peft;
pub mod profile;
#[cfg(feature = "text")]
pub mod text;
pub mod train;
mod traits;
#[doc = include_str!("../docs/troubleshooting.md")]
pub mod troubleshooting {}

pub use adapter::{
    Access, Adapted, Adapter, Adapters, Copies, DEFAULT_ADAPTER, Form, LORA_WEIGHT_NAMES, Layer,
    LayerParts, LayerPartsMut, Param, Part, Role, Tokens,
};
pub use config::{
    CordaConfig, CordaMethod, EvaConfig, Init, Kind, LoftqConfig, LoraConfig, LoraGaConfig,
    LoraGaDirection, LoraGaScale, Mark, Settings, Targets, TrainBias, WithLora,
};
pub use convert::{Builder, Names};
pub use error::{Error, Result};
pub use init::Calibrated;
pub use lora_derive::{LoraModel, forward};
pub use manage::{
    Combination, CombineOptions, GradientCheck, LayerStatus, MajoritySign, ModelStatus, State,
    Summary, SummaryRow, transfer_weights,
};
pub use ops::{checkpoint, seed_dropout};
pub use traits::{Cursor, CursorMut, Lora, LoraLayer, LoraModel, LoraModule, NamedParam};

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;

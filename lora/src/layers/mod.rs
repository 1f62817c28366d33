//! The LoRA counterparts of candle-nn's layers.
//!
//! [`LoraLinear`], [`LoraOwnLinear`], [`LoraTransposedLinear`], [`LoraConv1d`], [`LoraConv2d`], [`LoraEmbedding`] and
//! [`LoraWeight`] carry adapters, and so do the weights in a [`LoraLSTM`] or [`LoraGRU`].
//! [`LoraLayerNorm`], [`LoraRmsNorm`], [`LoraGroupNorm`], [`LoraBatchNorm`], [`LoraConvTranspose1d`],
//! [`LoraConvTranspose2d`] and [`LoraPReLU`] carry none. Without an adapter each computes what its base
//! layer does, and passes the gradient to its input, which candle's fused norms, its caches and its
//! transposed convolution of one dimension do not.
//!
//! A layer that carries adapters is made by hand with `new`, any other with
//! [`to_frozen`](crate::LoraModel::to_frozen) of its base layer. Both stand in a struct or a list
//! like any module:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Linear, Module, seq};
//! use lora::{LoraConfig, layers::LoraLinear};
//!
//! let base = Linear::new(Tensor::ones((3, 2), DType::F32, &Device::Cpu)?, None);
//! let layer = LoraLinear::new(&base, &LoraConfig::new(1))?;
//! let net = seq().add(layer.clone()).add(candle_nn::Activation::Relu);
//! assert_eq!(net.forward(&Tensor::ones((1, 2), DType::F32, &Device::Cpu)?)?.dims(), [1, 3]);
//! # Ok::<(), lora::Error>(())
//! ```
//!
//! # Fields that hide what they hold
//!
//! | a field of type | in your model |
//! |---|---|
//! | `candle_nn::Sequential` | [`Sequential`], by [`seq`]: the same methods, and layers that can be adapted |
//! | `Box<dyn Module>` | [`AnyModule`] |
//! | `candle_nn::LSTM`, `candle_nn::GRU` | [`LSTM`], [`GRU`]: the same constructors. Candle keeps the tensors private. Under `#[lora(skip)]` candle's own stays as it is and passes the gradient, but is not counted, moved or trained |
//! | `Func`, `FuncT`, `Arc<dyn Fn(..)>` that call layers | a struct of those layers |
//! | `Func`, `FuncT`, `Arc<dyn Fn(..)>` that call none | `#[lora(skip)]`: the closure is shared |
//! | `QMatMul` | nothing: [`LoraQMatMul`] takes its place. With a bias, or in a linear layer of your own: [`QLinear`] |
//! | `QTensor` | [`QLinear`] or [`QEmbedding`]. Under `#[lora(skip)]` the weights stay as they are, and no gradient passes them |
//! | `KvCache`, `RotatingKvCache`, `ConcatKvCache` of candle's | nothing: a [`LoraCache`] takes its place |
//! | `Cache`, `ScatteredKvCache` and other caches of candle's | nothing; they serve generation and pass no gradient |
//! | `Option<(Tensor, Tensor)>` as a cache | nothing: two tensors of three dimensions and more are state, which is cloned, not parameters. Weights of such shapes need a field each |
//! | `Arc<M>`, `Rc<M>` of a model | nothing: each place gets adapters of its own, frozen tensors stay shared |
//! | `RefCell<T>`, `OnceCell<T>` of plain values | `#[lora(skip)]`: the value is cloned |
//! | `Mutex<T>`, `RwLock<T>` of plain values | `Arc<Mutex<T>>` under `#[lora(skip)]`: base and LoRA model share the value. A lock itself cannot be cloned |
//!
//! A model within a `RefCell` or a lock is not adapted: nothing could walk it safely.

mod activation;
mod any;
mod batch_norm;
mod cache;
mod containers;
mod conv;
mod conv_transpose;
mod dropout;
mod embedding;
mod group_norm;
mod hidden;
mod layer_norm;
mod linear;
mod own_linear;
mod plain;
mod prelu;
mod quantised;
mod recompute;
mod rnn;
mod sequential;
mod tensor;
mod transposed_linear;
mod weight;

pub use crate::kernels::quantised::GGML_TYPES;
pub use activation::LoraActivation;
pub use any::{AnyModule, LoraAnyModule};
pub use batch_norm::LoraBatchNorm;
pub use cache::{CandleCache, LoraCache};
pub use conv::{LoraConv1d, LoraConv2d};
pub use conv_transpose::{LoraConvTranspose1d, LoraConvTranspose2d};
pub use dropout::LoraDropout;
pub use embedding::LoraEmbedding;
pub use group_norm::LoraGroupNorm;
pub use layer_norm::{LoraLayerNorm, LoraRmsNorm};
pub use linear::LoraLinear;
pub use own_linear::{LoraOwnLinear, OwnLinear};
pub use prelu::LoraPReLU;
pub use quantised::{LoraQEmbedding, LoraQLinear, LoraQMatMul, QEmbedding, QLinear};
pub use recompute::{LoraRecompute, Recompute};
pub use rnn::{GRU, LSTM, LoraGRU, LoraLSTM, gru, lstm};
pub use sequential::{LoraSequential, Sequential, seq};
pub use transposed_linear::{LoraTransposedLinear, TransposedLinear};
pub use weight::{LoraWeight, Weight};

#[doc(hidden)]
pub use own_linear::{BiasField, WeightField, adapt as adapt_own_linear};

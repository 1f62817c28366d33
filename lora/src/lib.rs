//! The LoRA counterpart of any candle model, derived at compile time.

mod adapter;
mod backward;
mod builder;
mod config;
mod convert;
mod error;
mod init;
mod layer;
pub mod layers;
mod matching;
mod merge;
mod model;
pub mod ops;
mod params;
mod path;
pub mod peft;
mod summary;
mod transfer;
mod visit;
mod with_lora;

pub use adapter::{Adapted, Adapter, Adapters, DEFAULT_ADAPTER, Settings};
pub use builder::{Builder, Mark, Plan};
pub use config::{Init, LoraConfig, Targets, TrainBias};
pub use error::{Error, Result};
pub use layer::{Layer, Param, Part, Role};
pub use model::{Lora, LoraLayer, LoraModel, LoraModule};
pub use params::NamedParam;
pub use summary::{Summary, SummaryRow};
pub use transfer::{LORA_WEIGHT_NAMES, transfer_weights};
pub use visit::{Cursor, CursorMut};
pub use with_lora::WithLora;

#[doc(hidden)]
pub mod __private {
    pub use core::{
        clone::Clone, fmt, fmt::Debug, marker::Sized, option::Option, result::Result::Ok,
    };
}

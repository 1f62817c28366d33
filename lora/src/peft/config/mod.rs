//! `adapter_config.json`: reading, writing, and what of it becomes a [`LoraConfig`](crate::LoraConfig).

mod adapter_config;
mod parse;
mod settings;
mod write;

pub use adapter_config::{AdapterConfig, InitWeights, OneOrMany, TaskType, TokenIndices};
pub(super) use parse::show;
pub(super) use write::to_vec as json_bytes;

//! `adapter_config.json`: reading it, writing it, and its way to a
//! [`LoraConfig`](crate::LoraConfig) and back.

mod adapter_config;
mod parse;
mod settings;
mod write;

pub use adapter_config::{AdapterConfig, InitWeights, OneOrMany, TaskType, TokenIndices};
pub(super) use write::to_vec as json_bytes;

//! Reading and writing whole files: written whole or not at all, read up to a limit and checked.

mod bounded;
mod checkpoint;
mod json;
mod safetensors;
mod stage;

pub(crate) use bounded::read_bounded;
#[cfg(feature = "text")]
pub(crate) use bounded::read_up_to;
#[cfg(feature = "hub")]
pub(crate) use checkpoint::Index;
pub(crate) use checkpoint::{Checkpoint, INDEX};
pub(crate) use json::{parse as parse_json, read as read_json, read_object};
pub(crate) use safetensors::{Shard, TensorFile};
pub(crate) use stage::{stage, sync, temporary};

//! The commands on adapters and checkpoints as files, without a model's code.

pub mod combine;
pub mod convert;
pub mod diff;
mod dtype;
pub mod extract;
pub mod inspect;
pub mod merge;
mod rank;
pub mod resize;

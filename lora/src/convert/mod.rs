//! From a base model to its LoRA model: [`Builder`] walks the base model, [`Attach`] gives each
//! layer its adapter.

mod attach;
mod builder;
mod calibrate;
mod fresh;
mod names;
mod paths;
mod quantise;

pub(crate) use attach::{Attach, Values};
pub use builder::Builder;
pub(crate) use builder::Conversion;
pub(crate) use calibrate::calibrate;
pub use names::Names;

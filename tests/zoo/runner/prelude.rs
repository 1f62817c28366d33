//! What each file of `../../runs` imports.

pub use crate::changed::changed;
pub use crate::numbers::mean_square;
pub use crate::peft::Data;
pub use crate::{peft, run};
pub use anyhow::Result;
pub use candle_core::{DType, Device, IndexOp, Tensor};
pub use candle_nn::{Module, ModuleT, VarBuilder};

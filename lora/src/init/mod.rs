//! Initial values of adapters, as [`Init`](crate::Init) names them.

mod calibration;
mod draw;
mod original;
mod pca;
mod start;
#[cfg(test)]
mod tests;

pub use calibration::Calibrated;
pub(crate) use calibration::Calibration;
pub(crate) use draw::{AdapterInit, adapter_dtype, rng};
pub(crate) use original::convert;
pub(crate) use start::{Start, Target, missing, residual, start};

//! The dtypes of files.

use candle_core::DType;
use clap::ValueEnum;

/// A float type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Float {
    F32,
    F16,
    Bf16,
}

impl From<Float> for DType {
    fn from(float: Float) -> Self {
        match float {
            Float::F32 => Self::F32,
            Float::F16 => Self::F16,
            Float::Bf16 => Self::BF16,
        }
    }
}

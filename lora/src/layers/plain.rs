//! Values without parameters: each is its own LoRA type.

use crate::{Builder, Cursor, CursorMut, LoraModel, LoraModule, Result};
use candle_core::{DType, Device};
use candle_nn::kv_cache::{
    Cache, IndicesAndMask, InterleavedKvCache, RawInterleavedKvCache, RotatingCache,
    ScatteredCacheBuilder, ScatteredKvCache,
};
use candle_nn::ops::Identity;
use candle_nn::rnn::{GRUConfig, GRUState, LSTMConfig, LSTMState};
use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig};

macro_rules! plain {
    ($($ty:ty),* $(,)?) => {$(
        impl LoraModel for $ty {
            type Lora = Self;

            fn adapt(&self, _: &mut Builder<'_>) -> Result<Self> {
                Ok(self.clone())
            }
        }

        impl LoraModule for $ty {
            type Base = Self;

            fn to_base(&self) -> Result<Self> {
                Ok(self.clone())
            }

            fn visit(&self, _: &mut Cursor<'_>) {}

            fn visit_mut(&mut self, _: &mut CursorMut<'_>) {}
        }
    )*};
}

plain!(
    bool,
    char,
    u8,
    u16,
    u32,
    u64,
    usize,
    i8,
    i16,
    i32,
    i64,
    isize,
    f32,
    f64,
    String,
    (),
    &'static str,
    DType,
    Device,
    Identity,
    Conv1dConfig,
    Conv2dConfig,
    ConvTranspose1dConfig,
    ConvTranspose2dConfig,
    GRUConfig,
    GRUState,
    LSTMConfig,
    LSTMState,
    // Caches that only serve generation: what candle appends to them loses its graph.
    Cache,
    IndicesAndMask,
    InterleavedKvCache,
    RawInterleavedKvCache,
    RotatingCache,
    ScatteredCacheBuilder,
    ScatteredKvCache,
);

pub(super) use plain;

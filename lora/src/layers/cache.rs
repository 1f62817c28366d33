//! Caches of keys and values: state of a sequence, not of the model.

use crate::error::warn;
use crate::ops::{ConcatKvCache, KvCache, RotatingKvCache};
use crate::{Builder, Cursor, CursorMut, LoraModel, LoraModule, Result};
use candle_nn::kv_cache;
use std::fmt::Debug;
use std::ops::{Deref, DerefMut};

/// One of candle's caches of keys and values.
pub trait CandleCache: Clone + Debug {
    /// The cache with a gradient, of [`lora::ops`](crate::ops).
    type Passing: Clone + Debug;
}

/// The LoRA counterpart of one of candle's caches of keys and values: the cache of the same name in
/// [`lora::ops`](crate::ops), which passes the gradient. Generation works as with candle's.
///
/// A field needs no attribute. A conversion starts with an empty cache, and warns if the cache was not.
/// As with candle's caches, a clone that is not empty shares its buffer: reset it first.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use candle_nn::{Linear, Module, kv_cache::KvCache};
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// #[derive(Clone, Debug, LoraModel)]
/// struct Attention {
///     #[lora(rank)]
///     k_proj: Linear,
///     kv_cache: KvCache,
/// }
///
/// #[lora::forward]
/// impl Attention {
///     fn forward(&mut self, xs: &Tensor) -> Result<Tensor> {
///         let k = self.k_proj.forward(xs)?;
///         let (k, v) = self.kv_cache.append(&k, &k)?;
///         k.mul(&v)?.sum(1)
///     }
/// }
///
/// let k_proj = Linear::new(Tensor::randn(0f32, 1., (4, 4), &Device::Cpu)?, None);
/// let net = Attention { k_proj, kv_cache: KvCache::new(1, 16) };
/// let mut model = net.to_lora(&LoraConfig::new(2))?;
/// let loss = model.forward(&Tensor::randn(0f32, 1., (1, 3, 4), &Device::Cpu)?)?.sum_all()?;
/// model.backward(&loss)?; // reaches the adapter
/// assert_eq!(model.kv_cache.current_seq_len(), 3);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LoraCache<C: CandleCache>(C::Passing);

impl<C: CandleCache> Deref for LoraCache<C> {
    type Target = C::Passing;

    fn deref(&self) -> &C::Passing {
        &self.0
    }
}

impl<C: CandleCache> DerefMut for LoraCache<C> {
    fn deref_mut(&mut self) -> &mut C::Passing {
        &mut self.0
    }
}

/// Says that a conversion leaves the contents of a cache behind.
fn warn_of(positions: usize, path: &str) {
    if positions > 0 {
        warn(&format!(
            "the cache of keys and values `{path}` holds {positions} positions, which the converted \
             model does not: it begins a new sequence"
        ));
    }
}

macro_rules! cache {
    ($cache:ident) => {
        impl CandleCache for kv_cache::$cache {
            type Passing = $cache;
        }

        impl LoraModel for kv_cache::$cache {
            type Lora = LoraCache<Self>;
            // Under `skip` candle's cache would cut the gradient.
            const IS_LAYER: bool = true;

            fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraCache<Self>> {
                warn_of(self.current_seq_len(), cx.path());
                Ok(LoraCache($cache::like(self)))
            }
        }

        impl LoraModule for LoraCache<kv_cache::$cache> {
            type Base = kv_cache::$cache;

            fn to_base(&self) -> Result<Self::Base> {
                warn_of(self.current_seq_len(), stringify!($cache));
                Ok(self.candle())
            }

            fn visit(&self, _: &mut Cursor<'_>) {}

            fn visit_mut(&mut self, _: &mut CursorMut<'_>) {}
        }

        impl LoraModel for $cache {
            type Lora = Self;

            fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self> {
                warn_of(self.current_seq_len(), cx.path());
                Ok($cache::like(&self.candle()))
            }
        }

        impl LoraModule for $cache {
            type Base = Self;

            fn to_base(&self) -> Result<Self> {
                warn_of(self.current_seq_len(), stringify!($cache));
                Ok($cache::like(&self.candle()))
            }

            fn visit(&self, _: &mut Cursor<'_>) {}

            fn visit_mut(&mut self, _: &mut CursorMut<'_>) {}
        }
    };
}

cache!(KvCache);
cache!(RotatingKvCache);
cache!(ConcatKvCache);

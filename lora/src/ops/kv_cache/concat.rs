//! The cache that joins tensors, without a buffer.

use candle_core::{Result, Tensor};
use candle_nn::kv_cache;

/// Keys and values of earlier steps, as [`candle_nn::kv_cache::ConcatKvCache`], with a gradient. In
/// training a cache that is not reset keeps the graph of earlier steps.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use lora::ops::ConcatKvCache;
///
/// let mut cache = ConcatKvCache::new(1);
/// let k = Var::new(&[[1f32, 2.]], &Device::Cpu)?;
/// cache.append(&k, &k)?;
/// let (keys, values) = cache.append(&k, &k)?;
/// assert_eq!(keys.to_vec2::<f32>()?, [[1., 2., 1., 2.]]);
/// let grads = keys.mul(&values)?.sum_all()?.backward()?;
/// assert_eq!(grads.get(&k).unwrap().to_vec2::<f32>()?, [[4., 8.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ConcatKvCache {
    held: Option<(Tensor, Tensor)>,
    dim: usize,
}

impl ConcatKvCache {
    /// An empty cache along this dimension.
    pub fn new(dim: usize) -> Self {
        Self { held: None, dim }
    }

    /// An empty cache with the dimension of candle's.
    pub(crate) fn like(cache: &kv_cache::ConcatKvCache) -> Self {
        Self::new(cache.dim())
    }

    /// An empty cache of candle's along this dimension.
    pub(crate) fn candle(&self) -> kv_cache::ConcatKvCache {
        kv_cache::ConcatKvCache::new(self.dim)
    }

    /// Adds keys and values, and returns all so far.
    ///
    /// # Errors
    /// If the shapes do not fit those of earlier calls.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let all = match &self.held {
            None => (k.contiguous()?, v.contiguous()?),
            Some((held_k, held_v)) => (
                Tensor::cat(&[held_k, k], self.dim)?,
                Tensor::cat(&[held_v, v], self.dim)?,
            ),
        };
        self.held = Some(all.clone());
        Ok(all)
    }

    /// The length of the sequence so far.
    pub fn current_seq_len(&self) -> usize {
        let k = self.k();
        k.and_then(|k| k.dims().get(self.dim).copied()).unwrap_or(0)
    }

    /// True if nothing was added since the last reset.
    pub fn is_empty(&self) -> bool {
        self.held.is_none()
    }

    /// The dimension of the sequence.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The keys so far.
    pub fn k(&self) -> Option<&Tensor> {
        self.held.as_ref().map(|(k, _)| k)
    }

    /// The values so far.
    pub fn v(&self) -> Option<&Tensor> {
        self.held.as_ref().map(|(_, v)| v)
    }

    /// The keys so far, to be changed.
    pub fn k_mut(&mut self) -> Option<&mut Tensor> {
        self.held.as_mut().map(|(k, _)| k)
    }

    /// The values so far, to be changed.
    pub fn v_mut(&mut self) -> Option<&mut Tensor> {
        self.held.as_mut().map(|(_, v)| v)
    }

    /// Forgets all keys and values.
    pub fn reset(&mut self) {
        self.held = None;
    }
}

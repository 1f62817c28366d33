//! Caches of keys and values that pass the gradient.
//!
//! Candle's caches copy into a buffer or detach what they hold, which cuts the gradient of all keys and
//! values. The caches with a buffer do the same here with values that are not tracked. Beside the buffer
//! they keep what the graph needs, from the first tracked value to the next reset.

mod concat;

pub use concat::ConcatKvCache;

use candle_core::{Device, Result, Tensor};
use candle_nn::kv_cache;

/// What candle's two caches have in common.
trait Buffer {
    fn k(&self) -> Result<Option<Tensor>>;
    fn v(&self) -> Result<Option<Tensor>>;
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)>;
    fn reset(&mut self);
}

macro_rules! buffer {
    ($ty:ty) => {
        impl Buffer for $ty {
            fn k(&self) -> Result<Option<Tensor>> {
                self.k()
            }

            fn v(&self) -> Result<Option<Tensor>> {
                self.v()
            }

            fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
                self.append(k, v)
            }

            fn reset(&mut self) {
                self.reset();
            }
        }
    };
}

buffer!(kv_cache::KvCache);
buffer!(kv_cache::RotatingKvCache);

/// A buffer, and beside it the keys and values that it holds, with their graph.
#[derive(Clone, Debug)]
struct Tracking<B> {
    buffer: B,
    tracked: Option<(Tensor, Tensor)>,
}

impl<B: Buffer + Clone> Tracking<B> {
    fn new(buffer: B) -> Self {
        let tracked = None;
        Self { buffer, tracked }
    }

    /// An empty buffer of the same kind. A clone would write into the same memory.
    fn empty(&self) -> B {
        let mut buffer = self.buffer.clone();
        buffer.reset();
        buffer
    }

    fn k(&self) -> Result<Option<Tensor>> {
        match &self.tracked {
            Some((k, _)) => Ok(Some(k.clone())),
            None => self.buffer.k(),
        }
    }

    fn v(&self) -> Result<Option<Tensor>> {
        match &self.tracked {
            Some((_, v)) => Ok(Some(v.clone())),
            None => self.buffer.v(),
        }
    }

    /// Adds keys and values, and returns what the buffer gives. `join` makes the same of what was held
    /// and of what is new, with the graph of both.
    fn append(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        join: impl Fn(Option<Tensor>, &Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let (held_k, held_v) = (self.k()?, self.v()?);
        let is_tracked = self.tracked.is_some() || k.track_op() || v.track_op();
        let values = |tensor: &Tensor| tensor.detach().contiguous();
        let plain = self.buffer.append(&values(k)?, &values(v)?)?;
        if !is_tracked {
            return Ok(plain);
        }
        let all = (join(held_k, k)?, join(held_v, v)?);
        self.tracked = Some(all.clone());
        Ok(all)
    }

    fn reset(&mut self) {
        self.buffer.reset();
        self.tracked = None;
    }
}

/// Keys and values of earlier steps, as [`candle_nn::kv_cache::KvCache`], with a gradient.
///
/// Tracked keys and values are joined to the earlier ones by a copy, so training on a whole sequence
/// costs one copy. Call [`reset`](Self::reset) between sequences; in training a cache that is not
/// reset also keeps the graph of earlier steps.
///
/// The cache is its own LoRA type: a field of this type needs no attribute. Neither does one of candle's
/// type, which becomes a [`LoraCache`](crate::layers::LoraCache) around this one.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use lora::ops::KvCache;
///
/// let mut cache = KvCache::new(1, 8);
/// let k = Var::new(&[[1f32, 2.]], &Device::Cpu)?;
/// let (keys, values) = cache.append(&k, &k)?;
/// assert_eq!(keys.to_vec2::<f32>()?, [[1., 2.]]);
/// let grads = keys.mul(&values)?.sum_all()?.backward()?;
/// assert_eq!(grads.get(&k).unwrap().to_vec2::<f32>()?, [[2., 4.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KvCache {
    cache: Tracking<kv_cache::KvCache>,
    dim: usize,
}

impl KvCache {
    /// An empty cache along this dimension. `max_seq_len` is the length to allocate, which grows by
    /// itself.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        let cache = Tracking::new(kv_cache::KvCache::new(dim, max_seq_len));
        Self { cache, dim }
    }

    /// An empty cache with the settings of candle's.
    pub(crate) fn like(cache: &kv_cache::KvCache) -> Self {
        let mut empty = cache.clone();
        empty.reset();
        Self {
            cache: Tracking::new(empty),
            dim: cache.k_cache().dim(),
        }
    }

    /// An empty cache of candle's with these settings.
    pub(crate) fn candle(&self) -> kv_cache::KvCache {
        self.cache.empty()
    }

    /// The buffer of keys. It holds their values, without a graph.
    pub fn k_cache(&self) -> &kv_cache::Cache {
        self.cache.buffer.k_cache()
    }

    /// The buffer of values, as [`k_cache`](Self::k_cache).
    pub fn v_cache(&self) -> &kv_cache::Cache {
        self.cache.buffer.v_cache()
    }

    /// The keys so far.
    ///
    /// # Errors
    /// If the buffer cannot be read.
    pub fn k(&self) -> Result<Option<Tensor>> {
        self.cache.k()
    }

    /// The values so far.
    ///
    /// # Errors
    /// If the buffer cannot be read.
    pub fn v(&self) -> Result<Option<Tensor>> {
        self.cache.v()
    }

    /// Adds keys and values, and returns all so far.
    ///
    /// # Errors
    /// If the shapes do not fit those of earlier calls.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let dim = self.dim;
        self.cache.append(k, v, |held, new| match held {
            Some(held) => Tensor::cat(&[&held, new], dim),
            None => Ok(new.clone()),
        })
    }

    /// The length of the sequence so far.
    pub fn current_seq_len(&self) -> usize {
        self.cache.buffer.current_seq_len()
    }

    /// Forgets all keys and values.
    pub fn reset(&mut self) {
        self.cache.reset();
    }
}

/// The newest keys and values of a sliding window, as [`candle_nn::kv_cache::RotatingKvCache`], with a
/// gradient. See [`KvCache`].
#[derive(Clone, Debug)]
pub struct RotatingKvCache {
    cache: Tracking<kv_cache::RotatingKvCache>,
    dim: usize,
    window: usize,
}

impl RotatingKvCache {
    /// An empty cache along this dimension that holds `max_seq_len` positions.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        let buffer = kv_cache::RotatingKvCache::new(dim, max_seq_len);
        Self {
            cache: Tracking::new(buffer),
            dim,
            window: max_seq_len,
        }
    }

    /// An empty cache with the settings of candle's.
    pub(crate) fn like(cache: &kv_cache::RotatingKvCache) -> Self {
        let mut empty = cache.clone();
        empty.reset();
        Self {
            cache: Tracking::new(empty),
            dim: cache.k_cache().dim(),
            window: cache.k_cache().max_seq_len(),
        }
    }

    /// An empty cache of candle's with these settings.
    pub(crate) fn candle(&self) -> kv_cache::RotatingKvCache {
        self.cache.empty()
    }

    /// The buffer of keys. It holds their values, without a graph.
    pub fn k_cache(&self) -> &kv_cache::RotatingCache {
        self.cache.buffer.k_cache()
    }

    /// The buffer of values, as [`k_cache`](Self::k_cache).
    pub fn v_cache(&self) -> &kv_cache::RotatingCache {
        self.cache.buffer.v_cache()
    }

    /// The keys in the window, in the order of the buffer.
    ///
    /// # Errors
    /// If the buffer cannot be read.
    pub fn k(&self) -> Result<Option<Tensor>> {
        self.cache.k()
    }

    /// The values in the window, in the order of the buffer.
    ///
    /// # Errors
    /// If the buffer cannot be read.
    pub fn v(&self) -> Result<Option<Tensor>> {
        self.cache.v()
    }

    /// Adds keys and values. Returns those in the window, in the order of the buffer, or all of a
    /// sequence that is longer than the window.
    ///
    /// # Errors
    /// If the shapes do not fit those of earlier calls.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (dim, window, offset) = (self.dim, self.window, self.offset());
        let join = |held, new: &Tensor| written(held, new, dim, window, offset);
        let held = self.cache.append(k, v, join)?;
        // The whole of a long sequence is returned, of which the buffer keeps the end.
        match k.dim(dim)? >= window {
            true => Ok((k.clone(), v.clone())),
            false => Ok(held),
        }
    }

    /// Where in the buffer the next position is written.
    pub fn offset(&self) -> usize {
        self.cache.buffer.offset()
    }

    /// The length of the sequence so far, beyond the window, too.
    pub fn current_seq_len(&self) -> usize {
        self.cache.buffer.current_seq_len()
    }

    /// The mask for the next `seq_len` positions, as candle's cache makes it.
    ///
    /// # Errors
    /// If the mask cannot be made on the device.
    pub fn attn_mask(&self, seq_len: usize, device: &Device) -> Result<Option<Tensor>> {
        self.cache.buffer.attn_mask(seq_len, device)
    }

    /// The positions of the elements that the cache returns after the next `seq_len` positions.
    pub fn positions(&self, seq_len: usize) -> Vec<usize> {
        self.cache.buffer.positions(seq_len)
    }

    /// Forgets all keys and values.
    pub fn reset(&mut self) {
        self.cache.reset();
    }
}

/// A rotating buffer after `new` was written at `offset`.
fn written(
    held: Option<Tensor>,
    new: &Tensor,
    dim: usize,
    window: usize,
    offset: usize,
) -> Result<Tensor> {
    let length = new.dim(dim)?;
    if length >= window {
        return new.narrow(dim, length - window, window);
    }
    let Some(held) = held else {
        return Ok(new.clone());
    };
    let part = |from: &Tensor, start: usize, end: usize| match end > start {
        true => from.narrow(dim, start, end - start).map(Some),
        false => Ok(None),
    };
    let count = held.dim(dim)?;
    // What goes beyond the window's end stands at its beginning.
    let end = (offset + length).min(window);
    let wrapped = offset + length - end;
    let parts = [
        part(new, length - wrapped, length)?,
        part(&held, wrapped, offset.min(count))?,
        part(new, 0, length - wrapped)?,
        part(&held, end, count)?,
    ];
    let parts: Vec<Tensor> = parts.into_iter().flatten().collect();
    Tensor::cat(&parts, dim)
}

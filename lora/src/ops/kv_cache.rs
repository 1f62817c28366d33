//! Caches of keys and values that pass the gradient.
//!
//! Candle's caches copy into a buffer, which cuts the gradient of all keys and values. The caches here
//! do the same with values that are not tracked. Beside the buffer they keep what the graph needs,
//! from the first tracked value to the next reset.

use candle_core::{Device, Result, Tensor};
use candle_nn::kv_cache;

/// Keys and values of earlier steps, as [`candle_nn::kv_cache::KvCache`], with a gradient.
///
/// Tracked keys and values are joined to the earlier ones by a copy, so training on a whole sequence
/// costs one copy. Call [`reset`](Self::reset) between sequences; in training a cache that is not
/// reset also keeps the graph of earlier steps.
///
/// The cache is its own LoRA type: a field of this type needs no attribute.
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
    buffer: kv_cache::KvCache,
    dim: usize,
    /// The keys and values so far, with their graph.
    tracked: Option<(Tensor, Tensor)>,
}

impl KvCache {
    /// An empty cache along this dimension. `max_seq_len` is the length to allocate, which grows by
    /// itself.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self {
            buffer: kv_cache::KvCache::new(dim, max_seq_len),
            dim,
            tracked: None,
        }
    }

    /// The keys so far.
    ///
    /// # Errors
    /// If the buffer cannot be read.
    pub fn k(&self) -> Result<Option<Tensor>> {
        match &self.tracked {
            Some((k, _)) => Ok(Some(k.clone())),
            None => self.buffer.k(),
        }
    }

    /// The values so far.
    ///
    /// # Errors
    /// If the buffer cannot be read.
    pub fn v(&self) -> Result<Option<Tensor>> {
        match &self.tracked {
            Some((_, v)) => Ok(Some(v.clone())),
            None => self.buffer.v(),
        }
    }

    /// Adds keys and values, and returns all so far.
    ///
    /// # Errors
    /// If the shapes do not fit those of earlier calls.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let before = match &self.tracked {
            Some(tracked) => Some(tracked.clone()),
            None => self.buffer.k()?.zip(self.buffer.v()?),
        };
        let is_tracked = self.tracked.is_some() || k.track_op() || v.track_op();
        let plain = self.buffer.append(&values(k)?, &values(v)?)?;
        if !is_tracked {
            return Ok(plain);
        }
        let all = match before {
            Some((keys, values)) => (
                Tensor::cat(&[&keys, k], self.dim)?,
                Tensor::cat(&[&values, v], self.dim)?,
            ),
            None => (k.clone(), v.clone()),
        };
        self.tracked = Some(all.clone());
        Ok(all)
    }

    /// The length of the sequence so far.
    pub fn current_seq_len(&self) -> usize {
        self.buffer.current_seq_len()
    }

    /// Forgets all keys and values.
    pub fn reset(&mut self) {
        self.buffer.reset();
        self.tracked = None;
    }
}

/// The newest keys and values of a sliding window, as [`candle_nn::kv_cache::RotatingKvCache`], with a
/// gradient. See [`KvCache`].
#[derive(Clone, Debug)]
pub struct RotatingKvCache {
    buffer: kv_cache::RotatingKvCache,
    dim: usize,
    window: usize,
    tracked: Option<(Tensor, Tensor)>,
}

impl RotatingKvCache {
    /// An empty cache along this dimension that holds `max_seq_len` positions.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self {
            buffer: kv_cache::RotatingKvCache::new(dim, max_seq_len),
            dim,
            window: max_seq_len,
            tracked: None,
        }
    }

    /// The keys in the window, in the order of the buffer.
    ///
    /// # Errors
    /// If the buffer cannot be read.
    pub fn k(&self) -> Result<Option<Tensor>> {
        match &self.tracked {
            Some((k, _)) => Ok(Some(k.clone())),
            None => self.buffer.k(),
        }
    }

    /// The values in the window, in the order of the buffer.
    ///
    /// # Errors
    /// If the buffer cannot be read.
    pub fn v(&self) -> Result<Option<Tensor>> {
        match &self.tracked {
            Some((_, v)) => Ok(Some(v.clone())),
            None => self.buffer.v(),
        }
    }

    /// Adds keys and values. Returns those in the window, in the order of the buffer, or all of a
    /// sequence that is longer than the window.
    ///
    /// # Errors
    /// If the shapes do not fit those of earlier calls.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let before = match &self.tracked {
            Some(tracked) => Some(tracked.clone()),
            None => self.buffer.k()?.zip(self.buffer.v()?),
        };
        let offset = self.buffer.offset();
        let is_tracked = self.tracked.is_some() || k.track_op() || v.track_op();
        let plain = self.buffer.append(&values(k)?, &values(v)?)?;
        if !is_tracked {
            return Ok(plain);
        }
        let (keys, values) = before.unzip();
        let keys = self.written(keys, k, offset)?;
        let values = self.written(values, v, offset)?;
        self.tracked = Some((keys.clone(), values.clone()));
        // The whole of a long sequence is returned, of which the buffer keeps the end.
        match k.dim(self.dim)? >= self.window {
            true => Ok((k.clone(), v.clone())),
            false => Ok((keys, values)),
        }
    }

    /// The buffer after `new` was written to it at `offset`.
    fn written(&self, before: Option<Tensor>, new: &Tensor, offset: usize) -> Result<Tensor> {
        let (dim, length) = (self.dim, new.dim(self.dim)?);
        let part = |from: &Tensor, start: usize, end: usize| match end > start {
            true => from.narrow(dim, start, end - start).map(Some),
            false => Ok(None),
        };
        if length >= self.window {
            return new.narrow(dim, length - self.window, self.window);
        }
        let Some(before) = before else {
            return Ok(new.clone());
        };
        let held = before.dim(dim)?;
        // What goes beyond the window's end stands at its beginning.
        let end = (offset + length).min(self.window);
        let wrapped = offset + length - end;
        let parts = [
            part(new, length - wrapped, length)?,
            part(&before, wrapped, offset.min(held))?,
            part(new, 0, length - wrapped)?,
            part(&before, end, held)?,
        ];
        let parts: Vec<Tensor> = parts.into_iter().flatten().collect();
        Tensor::cat(&parts, dim)
    }

    /// Where in the buffer the next position is written.
    pub fn offset(&self) -> usize {
        self.buffer.offset()
    }

    /// The length of the sequence so far, beyond the window, too.
    pub fn current_seq_len(&self) -> usize {
        self.buffer.current_seq_len()
    }

    /// The mask for the next `seq_len` positions, as candle's cache makes it.
    ///
    /// # Errors
    /// If the mask cannot be made on the device.
    pub fn attn_mask(&self, seq_len: usize, device: &Device) -> Result<Option<Tensor>> {
        self.buffer.attn_mask(seq_len, device)
    }

    /// The positions of the elements that the cache returns after the next `seq_len` positions.
    pub fn positions(&self, seq_len: usize) -> Vec<usize> {
        self.buffer.positions(seq_len)
    }

    /// Forgets all keys and values.
    pub fn reset(&mut self) {
        self.buffer.reset();
        self.tracked = None;
    }
}

/// The values alone, as candle's buffers take them.
fn values(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().contiguous()
}

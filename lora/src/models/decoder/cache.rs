//! The keys and values of earlier positions.

use super::config::DecoderConfig;
use super::padding::Padding;
use crate::ops::KvCache;
use candle_core::Result;

/// The keys and values that a [`Decoder`](super::Decoder) has computed for a batch of sequences so
/// far. Each generation has its own; the caller holds it.
///
/// Where the angles of the rope depend on the length (`dynamic`, `longrope`), a longer sequence turns
/// the cached keys anew. The values and the other layers' keys stay as the shorter sequence made
/// them: only there do the logits differ from those without a cache, as in transformers.
///
/// A forward pass that fails may leave a part of its keys behind: [`reset`](Self::reset) the cache
/// then.
#[derive(Debug)]
pub struct Cache {
    pub(super) layers: Vec<KvCache>,
    pub(super) padding: Padding,
}

/// The dimension of the positions.
const TIME: usize = 2;

/// The length to allocate first. The buffers grow by themselves.
const START: usize = 256;

impl Cache {
    /// An empty cache for a model of this configuration.
    pub fn new(config: &DecoderConfig) -> Self {
        let layers = config.layers.iter();
        Self {
            layers: layers.map(|_| KvCache::new(TIME, START)).collect(),
            padding: Padding::default(),
        }
    }

    /// A copy with memory of its own, for another continuation of the same sequences.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn fork(&self) -> Result<Self> {
        let copy = |layer: &KvCache| {
            let mut copy = KvCache::new(TIME, START);
            if let (Some(k), Some(v)) = (layer.k()?, layer.v()?) {
                copy.append(&k, &v)?;
            }
            Ok(copy)
        };
        Ok(Self {
            layers: self.layers.iter().map(copy).collect::<Result<_>>()?,
            padding: self.padding.clone(),
        })
    }

    /// How many positions the cache holds, padding among them.
    pub fn len(&self) -> usize {
        self.padding.length()
    }

    /// Whether the cache holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        for layer in &mut self.layers {
            layer.reset();
        }
        self.padding = Padding::default();
    }
}

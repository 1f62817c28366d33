//! The keys and values of earlier positions.

use super::config::DecoderConfig;
use super::padding::Padding;
use crate::ops::KvCache;

/// The keys and values that a [`Decoder`](super::Decoder) has computed for a batch of sequences so
/// far. Each generation has its own; the caller holds it.
///
/// Where the angles of the rope depend on the length (`dynamic`, `longrope`), a longer sequence turns
/// the cached keys anew. The values and the other layers' keys stay as the shorter sequence made
/// them: only there do the logits differ from those without a cache, as in transformers.
///
/// A forward pass that fails may leave a part of its keys behind: [`reset`](Self::reset) the cache
/// then.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(super) layers: Vec<KvCache>,
    pub(super) padding: Padding,
}

/// The length to allocate first. The buffers grow by themselves.
const START: usize = 256;

impl Cache {
    /// An empty cache for a model of this configuration.
    pub fn new(config: &DecoderConfig) -> Self {
        let time = 2;
        let layers = config.layers.iter();
        Self {
            layers: layers.map(|_| KvCache::new(time, START)).collect(),
            padding: Padding::default(),
        }
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

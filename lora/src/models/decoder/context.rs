//! What all layers of a forward pass share: the tables of the ropes, and the masks.

use super::config::{DecoderConfig, LayerConfig};
use super::padding::Padding;
use super::rope::Tables;
use candle_core::{DType, Device, Result, Tensor};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The tables and masks of one forward pass.
#[derive(Clone, Debug)]
pub(super) struct Context {
    turns: Vec<Turn>,
    /// By window.
    masks: HashMap<Option<usize>, Option<Tensor>>,
}

/// The tables of a rope.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// For the new positions.
    pub(super) new: Tables,
    /// For all positions, where the angles depend on the length. Keys then are cached as they are
    /// before they turn.
    pub(super) all: Option<Tables>,
}

impl Context {
    /// What the last `time` positions need.
    pub(super) fn new(
        config: &DecoderConfig,
        padding: &Padding,
        time: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let positions = padding.positions();
        let all: Vec<&[u32]> = positions.iter().map(Vec::as_slice).collect();
        let new: Vec<&[u32]> = all
            .iter()
            .map(|row| &row[padding.length() - time..])
            .collect();
        let length = |row: &Vec<u32>| row.last().map_or(0, |&last| last as usize + 1);
        let lengths: Vec<usize> = positions.iter().map(length).collect();
        let turns = config.ropes.iter().map(|rope| {
            let tables = |rows: &[&[u32]]| Tables::new(rope, rows, &lengths, dtype, device);
            Ok(Turn {
                new: tables(&new)?,
                all: rope.varies().then(|| tables(&all)).transpose()?,
            })
        });
        let mut masks = HashMap::new();
        for layer in &config.layers {
            if let Entry::Vacant(place) = masks.entry(layer.window) {
                place.insert(padding.mask(&positions, layer.window, time, device)?);
            }
        }
        Ok(Self {
            turns: turns.collect::<Result<_>>()?,
            masks,
        })
    }

    /// The tables of a layer's rope; none in a NoPE layer.
    pub(super) fn turn(&self, layer: &LayerConfig) -> Option<&Turn> {
        self.turns.get(layer.rope?)
    }

    /// The mask of a layer beside the causal one.
    pub(super) fn mask(&self, layer: &LayerConfig) -> Option<&Tensor> {
        self.masks.get(&layer.window)?.as_ref()
    }
}

//! What all layers of a forward pass share: the tables of the ropes, and which keys a
//! token sees.

use super::config::{DecoderConfig, LayerConfig};
use super::padding::{Hidden, Padding};
use super::rope::Tables;
use crate::ops::Attention;
use candle_core::{DType, Device, Result};

/// The tables of one forward pass, and where its padding is.
#[derive(Clone, Debug)]
pub(super) struct Context {
    turns: Vec<Turn>,
    hidden: Hidden,
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
        let length = |row: &Vec<u32>| row.iter().max().map_or(0, |&last| last as usize + 1);
        let lengths: Vec<usize> = positions.iter().map(length).collect();
        let turns = config.ropes.iter().map(|rope| {
            let tables = |rows: &[&[u32]]| Tables::new(rope, rows, &lengths, dtype, device);
            Ok(Turn {
                new: tables(&new)?,
                all: rope.varies().then(|| tables(&all)).transpose()?,
            })
        });
        let windows = config.layers.iter().map(|layer| layer.window);
        Ok(Self {
            turns: turns.collect::<Result<_>>()?,
            hidden: padding.hidden(&positions, windows, time, device)?,
        })
    }

    /// The tables of a layer's rope; none in a NoPE layer.
    pub(super) fn turn(&self, layer: &LayerConfig) -> Option<&Turn> {
        self.turns.get(layer.rope?)
    }

    /// The attention of a layer, in which a token sees what it may.
    pub(super) fn limited(&self, attention: Attention, layer: &LayerConfig) -> Attention {
        self.hidden.from(attention.causal(), layer.window)
    }
}

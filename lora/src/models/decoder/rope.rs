//! Turning queries and keys by their positions.

use super::config::Rope;
use candle_core::{DType, Device, Result, Tensor};

/// Cosines and sines for the positions of a batch: (time, dim / 2) where all rows have the same
/// positions, else (batch, time, dim / 2).
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Tables {
    /// The tables for these positions, the same number in each row. Frequencies that depend on the
    /// length take each row's own length, so that a row's result does not depend on its neighbours.
    pub(super) fn new(
        rope: &Rope,
        positions: &[&[u32]],
        lengths: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let half = rope.dim / 2;
        let time = positions.first().map_or(0, |row| row.len());
        let mut angles = Vec::with_capacity(positions.len() * time * half);
        for (row, &length) in positions.iter().zip(lengths) {
            let frequencies = rope.frequencies(length);
            for &position in *row {
                // transformers computes angles in f32.
                let angle = |&f: &f64| f64::from(position as f32 * f as f32);
                angles.extend(frequencies.iter().map(angle));
            }
        }
        let table = |of: fn(f64) -> f64| {
            let factor = rope.attention_factor();
            let values: Vec<f64> = angles.iter().map(|&angle| of(angle) * factor).collect();
            let table = match positions.len() {
                1 => Tensor::from_vec(values, (time, half), &Device::Cpu)?,
                rows => Tensor::from_vec(values, (rows, time, half), &Device::Cpu)?,
            };
            table.to_dtype(dtype)?.to_device(device)
        };
        Ok(Self {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
        })
    }
}

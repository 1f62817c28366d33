//! Which positions of a batch are tokens, and what follows from that: positions and masks.

use crate::ops::Attention;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The tokens among all positions of a batch so far. The others are padding.
#[derive(Clone, Debug, Default)]
pub(super) struct Padding {
    batch: usize,
    length: usize,
    /// For each row, where the tokens are; empty if there is no padding.
    rows: Vec<Vec<bool>>,
}

impl Padding {
    /// These positions and `time` more, which the mask tells apart: 1 for a token, 0 for padding.
    pub(super) fn with(&self, batch: usize, time: usize, mask: Option<&Tensor>) -> Result<Self> {
        if self.length > 0 && self.batch != batch {
            bail!(
                "the cache holds {} sequences, the batch has {batch}",
                self.batch
            );
        }
        let new = match mask {
            Some(mask) => read(mask, batch, time)?,
            None => vec![vec![true; time]; batch],
        };
        let is_padded = !self.rows.is_empty() || new.iter().flatten().any(|&token| !token);
        let row = |(index, new): (usize, Vec<bool>)| match self.rows.get(index) {
            Some(held) => [held.as_slice(), &new].concat(),
            None => [vec![true; self.length], new].concat(),
        };
        let rows = match is_padded {
            true => new.into_iter().enumerate().map(row).collect(),
            false => Vec::new(),
        };
        Ok(Self {
            batch,
            length: self.length + time,
            rows,
        })
    }

    /// How many positions there are, padding among them.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The position of each token in its sequence: one row for all if there is no padding. Padding
    /// has any position.
    pub(super) fn positions(&self) -> Vec<Vec<u32>> {
        if self.rows.is_empty() {
            return vec![(0..self.length as u32).collect()];
        }
        let count = |row: &Vec<bool>| {
            let tokens = row.iter().scan(0u32, |tokens, &is_token| {
                *tokens += u32::from(is_token);
                Some(tokens.saturating_sub(1))
            });
            tokens.collect()
        };
        self.rows.iter().map(count).collect()
    }

    /// How the last `queries` positions see no padding.
    pub(super) fn hidden(
        &self,
        positions: &[Vec<u32>],
        windows: impl Iterator<Item = Option<usize>>,
        queries: usize,
        device: &Device,
    ) -> Result<Hidden> {
        if self.rows.is_empty() {
            return Ok(Hidden::Nothing);
        }
        if let Some(runs) = runs(&self.rows)? {
            return Ok(Hidden::Runs(runs));
        }
        let mut masks = HashMap::new();
        for window in windows {
            if let Entry::Vacant(place) = masks.entry(window) {
                place.insert(self.mask(positions, window, queries, device)?);
            }
        }
        Ok(Hidden::Masks(masks))
    }

    /// What the attention adds to the scores of the last `queries` positions, beside the causal
    /// mask: nothing where a query may see a key, else −∞. A window counts tokens, not padding.
    fn mask(
        &self,
        positions: &[Vec<u32>],
        window: Option<usize>,
        queries: usize,
        device: &Device,
    ) -> Result<Tensor> {
        let mut mask = Vec::with_capacity(positions.len() * queries * self.length);
        for (row, positions) in self.rows.iter().zip(positions) {
            for &query in &positions[self.length - queries..] {
                mask.extend(row.iter().zip(positions).map(|(&is_token, &position)| {
                    let near =
                        window.is_none_or(|window| position as usize + window > query as usize);
                    match is_token && near {
                        true => 0f32,
                        false => f32::NEG_INFINITY,
                    }
                }));
            }
        }
        let shape = (positions.len(), 1, queries, self.length);
        Tensor::from_vec(mask, shape, device)
    }
}

/// How padding is hidden from the tokens.
#[derive(Clone, Debug)]
pub(super) enum Hidden {
    /// There is none.
    Nothing,
    /// The tokens of each row stand together: by the numbers of sequences.
    Runs(Tensor),
    /// Padding stands between tokens: by masks of all pairs, for each window.
    Masks(HashMap<Option<usize>, Tensor>),
}

impl Hidden {
    /// The attention of a layer with this window.
    pub(super) fn from(&self, attention: Attention, window: Option<usize>) -> Attention {
        let attention = match self {
            Self::Masks(masks) => {
                return match masks.get(&window) {
                    Some(mask) => attention.mask(mask),
                    None => attention,
                };
            }
            Self::Runs(numbers) => attention.sequences(numbers),
            Self::Nothing => attention,
        };
        match window {
            Some(window) => attention.window(window.saturating_sub(1), 0),
            None => attention,
        }
    }
}

fn read(mask: &Tensor, batch: usize, time: usize) -> Result<Vec<Vec<bool>>> {
    if mask.dims() != [batch, time] {
        bail!(
            "the padding mask is {:?}, the ids are {:?}",
            mask.dims(),
            [batch, time]
        );
    }
    let mask: Vec<Vec<f32>> = mask.to_dtype(DType::F32)?.to_vec2()?;
    if let Some(value) = mask
        .iter()
        .flatten()
        .find(|&&value| value != 0.0 && value != 1.0)
    {
        bail!("the padding mask is 1 for a token and 0 for padding, it holds {value}");
    }
    let row = |row: Vec<f32>| row.into_iter().map(|value| value == 1.0).collect();
    Ok(mask.into_iter().map(row).collect())
}

/// The numbers for [`Attention::sequences`] by which tokens see tokens and no padding, (batch, time).
/// `None` if padding stands between the tokens of a row.
fn runs(rows: &[Vec<bool>]) -> Result<Option<Tensor>> {
    let time = rows.first().map_or(0, Vec::len);
    let mut numbers = Vec::with_capacity(rows.len() * time);
    for row in rows {
        let runs = row.chunk_by(|a, b| a == b);
        if runs.clone().filter(|run| run[0]).count() > 1 {
            return Ok(None);
        }
        let number = |(number, run): (u32, &[bool])| vec![number; run.len()];
        numbers.extend((0..).zip(runs).flat_map(number));
    }
    Tensor::from_vec(numbers, (rows.len(), time), &Device::Cpu).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_on_both_sides_makes_three_runs() -> Result<()> {
        let rows = |rows: [[u8; 5]; 2]| rows.map(|row| row.map(|token| token == 1).to_vec());
        let numbers = runs(&rows([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))?;
        let numbers = numbers
            .map(|numbers| numbers.to_vec2::<u32>())
            .transpose()?;
        assert_eq!(numbers, Some(vec![vec![0, 1, 1, 2, 2], vec![0; 5]]));
        assert!(runs(&rows([[1, 0, 1, 1, 1], [1; 5]]))?.is_none());
        Ok(())
    }
}

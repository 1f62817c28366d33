//! Which positions of a batch are tokens, of which text, and what follows from that: positions and masks.

use crate::ops::Attention;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// The texts of all positions of a batch so far. A position without a text is padding.
#[derive(Clone, Debug, Default)]
pub(super) struct Padding {
    batch: usize,
    length: usize,
    /// For each row, the number of each position's text, 0 for padding; empty if each row is one text
    /// without padding.
    rows: Vec<Vec<u32>>,
}

impl Padding {
    /// These positions and `time` more, which the mask tells apart: 0 for padding, else the number of a
    /// token's text in its row, mostly 1.
    pub(super) fn with(&self, batch: usize, time: usize, mask: Option<&Tensor>) -> Result<Self> {
        if self.length > 0 && self.batch != batch {
            bail!(
                "the cache holds {} sequences, the batch has {batch}",
                self.batch
            );
        }
        let new = match mask {
            Some(mask) => read(mask, batch, time)?,
            None => vec![vec![1; time]; batch],
        };
        let is_told_apart = !self.rows.is_empty() || new.iter().flatten().any(|&text| text != 1);
        let row = |(index, new): (usize, Vec<u32>)| match self.rows.get(index) {
            Some(held) => [held.as_slice(), &new].concat(),
            None => [vec![1; self.length], new].concat(),
        };
        let rows = match is_told_apart {
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

    /// The position of each token in its text: one row for all if each row is one text without padding.
    /// Padding has any position.
    pub(super) fn positions(&self) -> Vec<Vec<u32>> {
        if self.rows.is_empty() {
            return vec![(0..self.length as u32).collect()];
        }
        let count = |row: &Vec<u32>| {
            let mut tokens = HashMap::new();
            let position = |&text: &u32| {
                let next = tokens.entry(text).or_insert(0);
                *next += 1;
                if text == 0 { 0 } else { *next - 1 }
            };
            row.iter().map(position).collect()
        };
        self.rows.iter().map(count).collect()
    }

    /// How the last `queries` positions see their own texts alone.
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
        let first = self.length - queries;
        for (row, positions) in self.rows.iter().zip(positions) {
            for (&of_query, &query) in row.iter().zip(positions).skip(first) {
                mask.extend(row.iter().zip(positions).map(|(&text, &position)| {
                    let near =
                        window.is_none_or(|window| position as usize + window > query as usize);
                    // Padding sees all tokens: what the model computes there means nothing.
                    match text != 0 && (of_query == 0 || text == of_query) && near {
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

/// How padding and other texts are hidden from the tokens.
#[derive(Clone, Debug)]
pub(super) enum Hidden {
    /// There is none.
    Nothing,
    /// The tokens of each text stand together: by the numbers of sequences.
    Runs(Tensor),
    /// Something stands between the tokens of a text: by masks of all pairs, for each window.
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

fn read(mask: &Tensor, batch: usize, time: usize) -> Result<Vec<Vec<u32>>> {
    if mask.dims() != [batch, time] {
        bail!(
            "the padding mask is {:?}, the ids are {:?}",
            mask.dims(),
            [batch, time]
        );
    }
    let mask: Vec<Vec<f64>> = mask.to_dtype(DType::F64)?.to_vec2()?;
    let is_number =
        |value: f64| value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value);
    if let Some(value) = mask.iter().flatten().find(|&&value| !is_number(value)) {
        bail!(
            "the padding mask is 0 for padding and 1 for a token, or the number of its text where several \
             are packed in a row; it holds {value}"
        );
    }
    let row = |row: Vec<f64>| row.into_iter().map(|value| value as u32).collect();
    Ok(mask.into_iter().map(row).collect())
}

/// The numbers for [`Attention::sequences`] by which tokens see their own text and no padding, (batch,
/// time). `None` if something stands between the tokens of a text.
fn runs(rows: &[Vec<u32>]) -> Result<Option<Tensor>> {
    let time = rows.first().map_or(0, Vec::len);
    let mut numbers = Vec::with_capacity(rows.len() * time);
    for row in rows {
        let runs = row.chunk_by(|a, b| a == b);
        let mut seen = HashSet::new();
        let mut texts = runs.clone().map(|run| run[0]).filter(|&text| text != 0);
        if !texts.all(|text| seen.insert(text)) {
            return Ok(None);
        }
        let number = |(number, run): (u32, &[u32])| vec![number; run.len()];
        numbers.extend((0..).zip(runs).flat_map(number));
    }
    Tensor::from_vec(numbers, (rows.len(), time), &Device::Cpu).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_on_both_sides_makes_three_runs() -> Result<()> {
        let rows = |rows: [[u32; 5]; 2]| rows.map(|row| row.to_vec());
        let numbers = runs(&rows([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))?;
        let numbers = numbers
            .map(|numbers| numbers.to_vec2::<u32>())
            .transpose()?;
        assert_eq!(numbers, Some(vec![vec![0, 1, 1, 2, 2], vec![0; 5]]));
        assert!(runs(&rows([[1, 0, 1, 1, 1], [1; 5]]))?.is_none());
        assert!(runs(&rows([[1, 2, 2, 3, 0], [1; 5]]))?.is_some());
        assert!(runs(&rows([[1, 2, 1, 3, 0], [1; 5]]))?.is_none());
        Ok(())
    }
}

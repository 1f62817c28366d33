//! Which positions of a batch are tokens, and what follows from that: positions and masks.

use candle_core::{DType, Device, Result, Tensor, bail};

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

    /// What the attention adds to the scores of the last `queries` positions, beside the causal
    /// mask: nothing where a query may see a key, else −∞. `None` where every query sees all keys up
    /// to itself that matter: padding behind all tokens of its row needs no mask.
    pub(super) fn mask(
        &self,
        positions: &[Vec<u32>],
        window: Option<usize>,
        queries: usize,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let padded = self.rows.iter().any(|row| {
            let first = row.iter().position(|&token| !token);
            first.is_some_and(|first| row[first..].contains(&true))
        });
        let window = window.filter(|&window| window < self.length);
        if !padded && window.is_none() {
            return Ok(None);
        }
        let mut mask = Vec::with_capacity(positions.len() * queries * self.length);
        for (index, positions) in positions.iter().enumerate() {
            let row = self.rows.get(index);
            for &query in &positions[self.length - queries..] {
                mask.extend(positions.iter().enumerate().map(|(key, &position)| {
                    let is_token = row.is_none_or(|row| row[key]);
                    let near =
                        window.is_none_or(|window| position as usize + window > query as usize);
                    if is_token && near {
                        0f32
                    } else {
                        f32::NEG_INFINITY
                    }
                }));
            }
        }
        let shape = (positions.len(), 1, queries, self.length);
        Tensor::from_vec(mask, shape, device).map(Some)
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

//! Which keys a query sees.

use crate::kernels::attention::{self, Sizes};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::HashSet;
use std::ops::Range;

/// Which keys a query sees, beside a mask.
#[derive(Clone, Debug, Default)]
pub(super) struct Visible {
    causal: bool,
    window: Option<(usize, usize)>,
    /// The keys of each query's sequence, (batch, queries); empty if a query's sequence is all keys.
    sequences: Vec<Range<usize>>,
}

impl Visible {
    pub(super) fn new(
        causal: bool,
        window: Option<(usize, usize)>,
        numbers: Option<&Tensor>,
        sizes: &Sizes,
    ) -> Result<Self> {
        let sequences = match numbers {
            Some(numbers) => sequences(numbers, sizes)?,
            None => Vec::new(),
        };
        Ok(Self {
            causal,
            window,
            sequences,
        })
    }

    pub(super) fn by_kernels(&self) -> attention::Visible<'_> {
        attention::Visible {
            causal: self.causal,
            window: self.window,
            sequences: &self.sequences,
        }
    }

    /// 0 for the keys that a query sees and −∞ for the others, (batch or 1, 1, queries, keys); none if
    /// all see all.
    pub(super) fn hidden(&self, sizes: &Sizes, device: &Device) -> Result<Option<Tensor>> {
        if !self.causal && self.window.is_none() && self.sequences.is_empty() {
            return Ok(None);
        }
        let Sizes { queries, keys, .. } = *sizes;
        let batch = match self.sequences.is_empty() {
            true => 1,
            false => sizes.batch,
        };
        let visible = self.by_kernels();
        let mut hidden = Vec::with_capacity(batch * queries * keys);
        for batch in 0..batch {
            for query in 0..queries {
                let seen = visible.seen(batch, query, sizes);
                hidden.extend((0..keys).map(|key| match seen.contains(&key) {
                    true => 0f32,
                    false => f32::NEG_INFINITY,
                }));
            }
        }
        Tensor::from_vec(hidden, (batch, 1, queries, keys), device).map(Some)
    }
}

/// For each query the run of keys with its number.
fn sequences(numbers: &Tensor, sizes: &Sizes) -> Result<Vec<Range<usize>>> {
    let Sizes {
        batch,
        queries,
        keys,
        ..
    } = *sizes;
    if numbers.dims() != [batch, keys] || !numbers.dtype().is_int() {
        bail!(
            "attention: the sequences' numbers must be integers of shape {:?}, they are {:?} of {:?}",
            [batch, keys],
            numbers.dtype(),
            numbers.dims()
        );
    }
    if queries > keys {
        bail!("attention: {queries} queries have no place among {keys} numbered keys");
    }
    let numbers = numbers.to_dtype(DType::I64)?.to_vec2::<i64>()?;
    let mut sequences = Vec::with_capacity(batch * queries);
    for (row, numbers) in numbers.iter().enumerate() {
        let mut earlier = HashSet::new();
        let mut of_keys = Vec::with_capacity(keys);
        for run in numbers.chunk_by(|a, b| a == b) {
            if !earlier.insert(run[0]) {
                bail!(
                    "attention: the keys of sequence {} do not stand together in row {row}: use a mask",
                    run[0]
                );
            }
            let (start, end) = (of_keys.len(), of_keys.len() + run.len());
            of_keys.resize(end, start..end);
        }
        sequences.extend_from_slice(&of_keys[keys - queries..]);
    }
    Ok(sequences)
}

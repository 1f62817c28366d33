//! The loss of a batch, and what it is a mean over.

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The loss of a batch: a mean over tokens or examples.
///
/// Their number is the batch's weight where several batches make a step, and in the mean of an epoch.
/// A plain tensor is a [`Loss`] of weight 1.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::train::{Loss, Unit};
///
/// let mean = Tensor::new(0.5f32, &Device::Cpu)?;
/// let loss = Loss::over_tokens(mean, 128);
/// assert_eq!((loss.count, loss.unit), (128, Unit::Tokens));
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loss {
    /// The mean, a single number.
    pub mean: Tensor,
    /// The number of tokens or examples that it is a mean over.
    pub count: usize,
    /// What is counted.
    pub unit: Unit,
}

/// What a loss is a mean over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Whole batches, whatever is in them.
    #[default]
    Batches,
    /// Examples: images, sentences, pairs.
    Examples,
    /// Tokens.
    Tokens,
}

impl Unit {
    /// The name of several.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batches => "batches",
            Self::Examples => "examples",
            Self::Tokens => "tokens",
        }
    }
}

impl Loss {
    /// A mean over so many examples.
    pub fn over_examples(mean: Tensor, examples: usize) -> Self {
        Self {
            mean,
            count: examples,
            unit: Unit::Examples,
        }
    }

    /// A mean over so many tokens: those that are learned.
    pub fn over_tokens(mean: Tensor, tokens: usize) -> Self {
        Self {
            mean,
            count: tokens,
            unit: Unit::Tokens,
        }
    }

    /// The number.
    pub(super) fn value(&self) -> Result<f64> {
        if self.mean.elem_count() != 1 {
            let problem = format!(
                "the loss has shape {:?}: it must be one number, so call mean_all() or sum_all()",
                self.mean.dims()
            );
            return Err(Error::Training(vec![problem]));
        }
        let value = self.mean.detach().to_dtype(DType::F64)?;
        Ok(value.flatten_all()?.get(0)?.to_scalar()?)
    }
}

impl From<Tensor> for Loss {
    fn from(mean: Tensor) -> Self {
        Self {
            mean,
            count: 1,
            unit: Unit::Batches,
        }
    }
}

/// A weighted mean of losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    pub fn add(&mut self, value: f64, count: usize) {
        self.sum += value * count as f64;
        self.count += count;
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn get(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    /// The mean as numbers of which sums over ranks are a mean again: f32 alone would round the sum of the
    /// losses and the count.
    pub fn parts(&self) -> [f32; Self::PARTS] {
        let high = self.sum as f32;
        let low = (self.sum - f64::from(high)) as f32;
        let count = self.count as u64;
        let digit = |place: u32| ((count >> (place * Self::BITS)) % (1 << Self::BITS)) as f32;
        [high, low, digit(0), digit(1), digit(2), digit(3)]
    }

    /// The mean of these sums.
    pub fn of_parts([high, low, digits @ ..]: [f32; Self::PARTS]) -> Self {
        let mut count = 0;
        for digit in digits.into_iter().rev() {
            count = (count << Self::BITS) + digit as u64;
        }
        Self {
            sum: f64::from(high) + f64::from(low),
            count: count as usize,
        }
    }

    /// Bits of a digit of the count: f32 adds those of 4096 ranks exactly.
    const BITS: u32 = 12;
    pub const PARTS: usize = 6;
}

#[cfg(test)]
mod tests {
    use super::Mean;

    #[test]
    fn means_of_ranks_are_summed_exactly() {
        let (mut whole, mut parts) = (Mean::default(), [0.0; Mean::PARTS]);
        for rank in 0..4096 {
            let mut mean = Mean::default();
            mean.add(0.5 + 0.001 * f64::from(rank), 100_003 * (rank as usize + 1));
            whole.add(mean.get(), mean.count());
            for (sum, part) in parts.iter_mut().zip(mean.parts()) {
                *sum += part;
            }
        }
        let sum = Mean::of_parts(parts);
        assert_eq!(sum.count(), whole.count());
        assert!((sum.get() - whole.get()).abs() < 1e-6 * whole.get());
    }
}

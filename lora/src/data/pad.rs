//! Rows of one length, as tensors.

use super::sequence::{NO_LABEL, Sequence};
use crate::Result;
use candle_core::{Device, Tensor, WithDType};

/// Where padding stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// In front of the tokens.
    Left,
    /// Behind the tokens.
    #[default]
    Right,
}

/// Pads rows to the longest of a batch.
///
/// ```
/// use candle_core::Device;
/// use lora::data::{Pad, Sequence};
///
/// let rows = [&Sequence::new(vec![3, 4, 5]), &Sequence::new(vec![6])];
/// let batch = Pad::new(0).sequences(&rows, &Device::Cpu)?;
/// assert_eq!(batch.ids.to_vec2::<u32>()?, [[3, 4, 5], [6, 0, 0]]);
/// assert_eq!(batch.mask.to_vec2::<u8>()?, [[1, 1, 1], [1, 0, 0]]);
/// assert_eq!(batch.labels.to_vec2::<i64>()?, [[3, 4, 5], [6, -100, -100]]);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Pad {
    token: u32,
    side: Side,
    multiple_of: usize,
}

/// Tokens of a batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tokens {
    /// The tokens, (batch, time), u32.
    pub ids: Tensor,
    /// 1 for a token and 0 for padding, (batch, time), u8.
    pub mask: Tensor,
}

/// A batch to learn from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Batch {
    /// The tokens, (batch, time), u32.
    pub ids: Tensor,
    /// 1 for a token and 0 for padding, (batch, time), u8.
    pub mask: Tensor,
    /// The labels, (batch, time), i64: [`NO_LABEL`] where nothing is learned, as at padding.
    pub labels: Tensor,
    /// The numbers of the sequences that are packed in a row, from 1, and 0 for padding: (batch, time), u32.
    pub numbers: Tensor,
    /// How many labels count, of all rows.
    pub learned: usize,
}

impl Pad {
    /// Padding with this token, behind the others.
    pub fn new(token: u32) -> Self {
        Self {
            token,
            side: Side::Right,
            multiple_of: 1,
        }
    }

    /// Sets where the padding stands.
    pub fn side(mut self, side: Side) -> Self {
        self.side = side;
        self
    }

    /// Makes the length a multiple of this number; by default, and with 0, any length goes.
    pub fn multiple_of(mut self, number: usize) -> Self {
        self.multiple_of = number.max(1);
        self
    }

    /// Rows of tokens, and their mask.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn tokens(&self, rows: &[impl AsRef<[u32]>], device: &Device) -> Result<Tokens> {
        let rows: Vec<&[u32]> = rows.iter().map(AsRef::as_ref).collect();
        let ones: Vec<Vec<u8>> = rows.iter().map(|row| vec![1; row.len()]).collect();
        Ok(Tokens {
            ids: self.rows(&rows, self.token, device)?,
            mask: self.rows(&ones, 0, device)?,
        })
    }

    /// Rows of tokens with labels.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn sequences(&self, rows: &[&Sequence], device: &Device) -> Result<Batch> {
        let ids: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
        let labels: Vec<&[i64]> = rows.iter().map(|row| row.labels.as_slice()).collect();
        let numbers: Vec<&[u32]> = rows.iter().map(|row| row.numbers.as_slice()).collect();
        let Tokens { ids, mask } = self.tokens(&ids, device)?;
        Ok(Batch {
            ids,
            mask,
            labels: self.rows(&labels, NO_LABEL, device)?,
            numbers: self.rows(&numbers, 0, device)?,
            learned: rows.iter().map(|row| row.learned()).sum(),
        })
    }

    /// Rows of any values, (batch, time), padded with this value: token types, for example.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn rows<T: WithDType>(
        &self,
        rows: &[impl AsRef<[T]>],
        padding: T,
        device: &Device,
    ) -> Result<Tensor> {
        let longest = rows.iter().map(|row| row.as_ref().len()).max();
        let longest = longest.unwrap_or(0).next_multiple_of(self.multiple_of);
        let mut values = Vec::with_capacity(rows.len() * longest);
        for row in rows {
            let row = row.as_ref();
            let missing = longest - row.len();
            let (front, behind) = match self.side {
                Side::Left => (missing, 0),
                Side::Right => (0, missing),
            };
            values.extend(std::iter::repeat_n(padding, front));
            values.extend_from_slice(row);
            values.extend(std::iter::repeat_n(padding, behind));
        }
        Ok(Tensor::from_vec(values, (rows.len(), longest), device)?)
    }
}

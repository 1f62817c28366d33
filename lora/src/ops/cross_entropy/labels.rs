//! The labels of rows.

use crate::kernels::cross_entropy::Label;
use candle_core::{DType, Result, Tensor, bail};

/// The label of each row, or none where the row does not count.
#[derive(Clone, Debug)]
pub(super) struct Labels(pub(super) Vec<Label>);

impl Labels {
    pub(super) fn read(labels: &Tensor, classes: usize, ignored: i64) -> Result<Self> {
        if !labels.dtype().is_int() {
            bail!(
                "cross-entropy: labels must be integers, they are {:?}",
                labels.dtype()
            );
        }
        // Labels that were cast to u32 have a negative one as its bits.
        let cast = labels.dtype() == DType::U32;
        let is_ignored = |label: i64| label == ignored || cast && label == ignored as u32 as i64;
        let values = labels
            .flatten_all()?
            .to_dtype(DType::I64)?
            .to_vec1::<i64>()?;
        let labels = values.into_iter().enumerate().map(|(row, label)| {
            if is_ignored(label) {
                return Ok(None);
            }
            match u32::try_from(label) {
                Ok(class) if (class as usize) < classes => Ok(Some(class)),
                _ => bail!(
                    "cross-entropy: label {label} of row {row} is no class, there are {classes}; \
                     a label that does not count is {ignored}"
                ),
            }
        });
        Ok(Self(labels.collect::<Result<_>>()?))
    }

    pub(super) fn rows(&self) -> usize {
        self.0.len()
    }

    /// The rows that count, and their labels.
    pub(super) fn counted(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let rows = self.0.iter().enumerate();
        rows.filter_map(|(row, label)| Some((row, (*label)?)))
    }
}

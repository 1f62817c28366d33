//! Comparing the outputs of two models.

use crate::training::predictions;
use anyhow::Result;
use candle_core::Tensor;
use std::fmt;

/// How far two models agree on the same images.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Images with the same prediction.
    pub same: usize,
    /// Images.
    pub of: usize,
    /// Largest difference between two logits.
    pub difference: f32,
}

impl Agreement {
    /// Compares logits of the shape (images, classes).
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn of(a: &Tensor, b: &Tensor) -> Result<Self> {
        let pairs = predictions(a)?.into_iter().zip(predictions(b)?);
        let difference = (a - b)?.abs()?.flatten_all()?.max(0)?;
        Ok(Self {
            same: pairs.filter(|(a, b)| a == b).count(),
            of: a.dim(0)?,
            difference: difference.to_scalar()?,
        })
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            same,
            of,
            difference,
        } = self;
        write!(
            f,
            "{same} of {of} predictions the same, logits differ by at most {difference:.1e}"
        )
    }
}

//! From a text's hidden states to one vector.

use super::inputs::Inputs;
use crate::ops::wide;
use candle_core::{D, Result, Tensor};

/// How the hidden states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// The mean of the tokens, padding left out.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's, padding left out.
    LastToken,
}

impl Pooling {
    /// From (batch, time, width) to (batch, width). A text without a token becomes zeros, except by
    /// `Cls`, which takes the first position.
    ///
    /// # Errors
    /// If the inputs do not fit.
    pub fn pool(self, hidden: &Tensor, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (_, time) = inputs.shape()?;
        let tokens = match self {
            Self::Cls => return hidden.narrow(1, 0, 1)?.squeeze(1),
            Self::Mean | Self::LastToken => inputs.tokens()?,
        };
        let Some(rows) = tokens else {
            return match self {
                Self::LastToken => hidden.narrow(1, time - 1, 1)?.squeeze(1),
                _ => summed(hidden)? / time as f64,
            };
        };
        let weights = |row: &Vec<bool>| -> Vec<f64> {
            let count = row.iter().filter(|&&is_token| is_token).count().max(1) as f64;
            let end = row.iter().rposition(|&is_token| is_token);
            let positions = row.iter().enumerate();
            let weight = |(position, &is_token): (usize, &bool)| match self {
                Self::LastToken => f64::from(u8::from(Some(position) == end)),
                _ => f64::from(u8::from(is_token)) / count,
            };
            positions.map(weight).collect()
        };
        let weights: Vec<f64> = rows.iter().flat_map(weights).collect();
        let weights = Tensor::from_vec(weights, (rows.len(), time, 1), hidden.device())?;
        let weights = weights.to_dtype(wide(hidden.dtype()))?;
        let weighted = hidden
            .to_dtype(wide(hidden.dtype()))?
            .broadcast_mul(&weights)?;
        weighted.sum(1)?.to_dtype(hidden.dtype())
    }
}

fn summed(hidden: &Tensor) -> Result<Tensor> {
    let sum = hidden.to_dtype(wide(hidden.dtype()))?.sum(1)?;
    sum.to_dtype(hidden.dtype())
}

/// The vectors (.., width), each one long. Zeros stay zeros.
pub(super) fn normalized(xs: &Tensor) -> Result<Tensor> {
    let wider = xs.to_dtype(wide(xs.dtype()))?;
    let lengths = wider.sqr()?.sum_keepdim(D::Minus1)?;
    // The root has no slope at 0: the smallest square is sentence-transformers' bound, 1e-12.
    let lengths = lengths.maximum(1e-24)?.sqrt()?;
    wider.broadcast_div(&lengths)?.to_dtype(xs.dtype())
}

//! [`Settings`]: size and strength of one adapter.

use serde::{Deserialize, Serialize};

/// Size and strength of one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// Rank r.
    pub rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// The scaling is alpha / √r instead of alpha / r (rsLoRA).
    pub use_rslora: bool,
    /// The factor s of the update, which follows from rank, alpha and rsLoRA.
    pub scaling: f64,
    /// Probability that an input of the low-rank branch is dropped in training.
    pub dropout: f64,
}

impl Settings {
    /// Settings with the scaling that rank and alpha give: alpha / r, or alpha / √r with rsLoRA,
    /// <https://arxiv.org/abs/2312.03732>.
    pub(crate) fn new(rank: usize, alpha: f64, use_rslora: bool, dropout: f64) -> Self {
        let divisor = match use_rslora {
            true => (rank as f64).sqrt(),
            false => rank as f64,
        };
        Self {
            rank,
            alpha,
            use_rslora,
            scaling: alpha / divisor,
            dropout,
        }
    }

    /// Twice the rank at the same scaling.
    pub(crate) fn of_twice_the_rank(self) -> Self {
        let factor = match self.use_rslora {
            true => std::f64::consts::SQRT_2,
            false => 2.0,
        };
        Self {
            rank: 2 * self.rank,
            alpha: factor * self.alpha,
            ..self
        }
    }
}

//! [`Settings`]: size and strength of one adapter.

/// Size and strength of one adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Rank r.
    pub rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// The factor s of the update.
    pub scaling: f64,
    /// Probability that an input of the low-rank branch is dropped in training.
    pub dropout: f64,
}

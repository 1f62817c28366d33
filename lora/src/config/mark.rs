//! [`Mark`]: what a field's attribute says.

use super::selection::Overrides;

/// What a field's attribute says about the layers below the field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark(Meaning);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    Rank(Overrides),
    Trainable,
}

impl Mark {
    /// `#[lora(rank)]`: a target by default, with the configuration's rank.
    pub const fn rank() -> Self {
        Self::rank_with(None, None)
    }

    /// `#[lora(rank = N)]`, with `alpha` and `dropout` where they are given. These values replace
    /// those of the configuration, but its rank and alpha patterns win over these values.
    pub const fn rank_of(rank: usize, alpha: Option<f64>, dropout: Option<f64>) -> Self {
        Self(Meaning::Rank(Overrides {
            rank: Some(rank),
            alpha,
            dropout,
        }))
    }

    /// `#[lora(rank, alpha = A, dropout = P)]`: the configuration's rank, with these values.
    pub const fn rank_with(alpha: Option<f64>, dropout: Option<f64>) -> Self {
        Self(Meaning::Rank(Overrides {
            rank: None,
            alpha,
            dropout,
        }))
    }

    /// `#[lora(trainable)]`: trained in full and saved with the adapter.
    pub const fn trainable() -> Self {
        Self(Meaning::Trainable)
    }

    /// The values of a mark with a rank; `None` for a mark that trains in full.
    pub(crate) fn overrides(self) -> Option<Overrides> {
        match self.0 {
            Meaning::Rank(overrides) => Some(overrides),
            Meaning::Trainable => None,
        }
    }
}

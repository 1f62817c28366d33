//! Tokens with labels.

use std::ops::Range;

/// The label of a token that is not learned, as in
/// [`CrossEntropy`](crate::ops::CrossEntropy::ignored_label).
pub const NO_LABEL: i64 = -100;

/// Tokens, and which of these are learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sequence {
    /// The tokens.
    pub ids: Vec<u32>,
    /// For each token itself, or [`NO_LABEL`]. The model's loss shifts these by one place.
    pub labels: Vec<i64>,
    /// The number of the sequence that a token belongs to, from 1, where several are in a row
    /// ([`pack`](super::pack)); else all are 1.
    pub numbers: Vec<u32>,
}

impl Sequence {
    /// Tokens that are all learned.
    pub fn new(ids: Vec<u32>) -> Self {
        Self {
            labels: ids.iter().map(|&id| id.into()).collect(),
            numbers: vec![1; ids.len()],
            ids,
        }
    }

    /// Leaves these tokens unlearned, for example those of a prompt. Places behind the end are left out.
    pub fn without_loss(mut self, places: Range<usize>) -> Self {
        let end = places.end.min(self.len());
        if places.start < end {
            self.labels[places.start..end].fill(NO_LABEL);
        }
        self
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The number of tokens that are learned. The first of a sequence never is, as no token stands before.
    pub fn learned(&self) -> usize {
        let labels = self.labels.iter().skip(1);
        labels.filter(|&&label| label != NO_LABEL).count()
    }

    /// Keeps the first tokens, at most this many.
    pub fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        self.labels.truncate(length);
        self.numbers.truncate(length);
    }
}

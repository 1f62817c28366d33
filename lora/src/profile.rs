//! Where the time of a step goes, by op.

use candle_core::Tensor;

/// The time of one op in one pass; ends when it is dropped.
#[must_use]
pub(crate) struct Span;

impl Span {
    /// Ends the span, with what the op made.
    pub(crate) fn end<'a>(self, _made: impl Iterator<Item = &'a Tensor>) {}
}

pub(crate) fn forward(_op: &'static str) -> Span {
    Span
}

pub(crate) fn backward(_op: &'static str) -> Span {
    Span
}

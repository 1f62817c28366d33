//! [`Tie`]: how the adapters of layers that share a weight belong together.

/// How a layer's adapter belongs to the adapter of another layer that shares the weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tie {
    #[default]
    None,
    /// The embedding's adapter. The heads that share its weight have views of this adapter.
    Shares,
    /// The head's adapter: a view of the embedding's.
    Shared,
}

//! [`Tie`]: how adapters of layers that share a weight belong together.

/// How an adapter belongs to an adapter of a layer that shares the weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tie {
    #[default]
    None,
    /// The embedding's adapter. The heads that share its weight have views of this adapter.
    Shares,
    /// The head's adapter: a view of the embedding's.
    Shared,
}

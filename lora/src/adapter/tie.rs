//! [`Tie`]: adapters of layers that share a weight.

/// How an adapter is tied to that of another layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tie {
    #[default]
    None,
    /// An embedding's, which acts on the heads that share its weight.
    Shares,
    /// A head's, which is a view of the embedding's.
    Shared,
}

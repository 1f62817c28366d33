//! [`Kind`]: which layer a leaf of a model is.

use std::fmt;

/// The kind of a layer. [`Display`](fmt::Display) gives the name of the base layer's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// [`Linear`](candle_nn::Linear).
    Linear,
    /// [`TransposedLinear`](crate::layers::TransposedLinear).
    TransposedLinear,
    /// [`Conv1d`](candle_nn::Conv1d).
    Conv1d,
    /// [`Conv2d`](candle_nn::Conv2d).
    Conv2d,
    /// [`Embedding`](candle_nn::Embedding).
    Embedding,
    /// [`Weight`](crate::layers::Weight).
    Weight,
    /// [`LayerNorm`](candle_nn::LayerNorm).
    LayerNorm,
    /// [`RmsNorm`](candle_nn::RmsNorm).
    RmsNorm,
    /// [`GroupNorm`](candle_nn::GroupNorm).
    GroupNorm,
    /// [`BatchNorm`](candle_nn::BatchNorm).
    BatchNorm,
    /// [`ConvTranspose1d`](candle_nn::ConvTranspose1d).
    ConvTranspose1d,
    /// [`ConvTranspose2d`](candle_nn::ConvTranspose2d).
    ConvTranspose2d,
    /// [`PReLU`](candle_nn::PReLU).
    PReLU,
    /// A [`Tensor`](candle_core::Tensor) that is a field.
    Tensor,
    /// A layer of another crate, by its name.
    Other(&'static str),
}

impl Kind {
    /// True for linear layers: `all-linear` means these, and initial values that are made from a
    /// weight are for these.
    pub(crate) fn is_linear(self) -> bool {
        matches!(self, Self::Linear | Self::TransposedLinear)
    }

    /// True for a bare weight, PEFT's `target_parameters`.
    pub(crate) fn is_bare(self) -> bool {
        self == Self::Weight
    }

    /// True for a normalisation.
    pub(crate) fn is_norm(self) -> bool {
        use Kind::{BatchNorm, GroupNorm, LayerNorm, RmsNorm};
        matches!(self, LayerNorm | RmsNorm | GroupNorm | BatchNorm)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Linear => "Linear",
            Self::TransposedLinear => "TransposedLinear",
            Self::Conv1d => "Conv1d",
            Self::Conv2d => "Conv2d",
            Self::Embedding => "Embedding",
            Self::Weight => "Weight",
            Self::LayerNorm => "LayerNorm",
            Self::RmsNorm => "RmsNorm",
            Self::GroupNorm => "GroupNorm",
            Self::BatchNorm => "BatchNorm",
            Self::ConvTranspose1d => "ConvTranspose1d",
            Self::ConvTranspose2d => "ConvTranspose2d",
            Self::PReLU => "PReLU",
            Self::Tensor => "Tensor",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl PartialEq<&str> for Kind {
    fn eq(&self, name: &&str) -> bool {
        self.name() == *name
    }
}

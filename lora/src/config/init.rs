//! [`Init`]: how adapters start.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// How adapters start, PEFT's `init_lora_weights`.
///
/// A fresh adapter leaves the model's results as they were, but for [`Random`](Init::Random). Some
/// initial values move a part of the base weight into the adapter and leave a *residual base*, see
/// [`changes_base`](Init::changes_base). The first three are for every layer, the others for linear
/// layers.
///
/// In JSON it is one word, `"default"`, `"pissa"`, `"pissa_niter_4"` and so on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Init {
    /// A from U(−1/√fan_in, 1/√fan_in) and B zero. For an embedding, A zero and B from N(0, 1).
    #[default]
    Default,
    /// A from N(0, 1/r) and B zero. For an embedding, as [`Default`](Init::Default).
    Gaussian,
    /// A and B both random, so that a fresh adapter changes the output. For tests.
    Random,
    /// The weight's r largest singular values and their vectors; leaves a residual base (PiSSA,
    /// <https://arxiv.org/abs/2404.02948>).
    Pissa,
    /// [`Pissa`](Init::Pissa) by this many steps of a randomised decomposition: much faster on
    /// large weights, not quite exact. In JSON `"pissa_niter_4"`.
    PissaNiter(usize),
    /// The first r columns of Q and rows of R in the weight's QR decomposition; leaves a residual
    /// base (OLoRA, <https://arxiv.org/abs/2406.01775>).
    Olora,
    /// A and B random and orthogonal to each other, so that B·A is zero. For an even rank.
    Orthogonal,
    /// A zero, and B the left vectors of the weight's r smallest singular values. B is not trained
    /// (MiCA, <https://arxiv.org/abs/2604.01694>).
    Mica,
    /// A the principal components of the layer's inputs and B zero; layers whose inputs vary in
    /// more ways get a higher rank (EVA, <https://arxiv.org/abs/2410.07170>). See
    /// [`EvaConfig`](crate::EvaConfig).
    Eva,
    /// Components of the weight as the layer's inputs see it, which the base loses (CorDA,
    /// <https://arxiv.org/abs/2406.05223>). See [`CordaConfig`](crate::CordaConfig).
    Corda,
    /// Singular vectors of the weight's gradient; the base loses their product (LoRA-GA,
    /// <https://arxiv.org/abs/2407.05000>). See [`LoraGaConfig`](crate::LoraGaConfig).
    LoraGa,
    /// The base is quantised, the adapter starts as what that costs (LoftQ,
    /// <https://arxiv.org/abs/2310.08659>). See [`LoftqConfig`](crate::LoftqConfig). A saved
    /// adapter fits the quantised base alone, which [`disabled`](crate::LoraModule::disabled) and
    /// [`to_base`](crate::LoraModule::to_base) give.
    Loftq,
}

impl Init {
    /// Whether the adapter starts with a part of the base weight, which the base then lacks. The
    /// adapter fits that residual base alone. In a quantised layer the residual base is quantised, too, and
    /// stays while the adapter does not act.
    pub fn changes_base(self) -> bool {
        use Init::*;
        matches!(self, Pissa | PissaNiter(_) | Olora | Corda | LoraGa | Loftq)
    }

    /// Whether the changed weight stays while the adapter does not act, as a quantised weight does.
    pub(crate) fn is_lasting(self) -> bool {
        self == Self::Loftq
    }

    /// Whether the values are drawn, from neither the weight nor data. They suit every kind of
    /// layer.
    pub(crate) fn is_drawn(self) -> bool {
        matches!(self, Self::Default | Self::Gaussian | Self::Random)
    }

    /// Whether a calibration must first see inputs of the layers.
    pub(crate) fn needs_inputs(self) -> bool {
        matches!(self, Self::Eva | Self::Corda)
    }

    /// Whether a calibration must first see gradients of the weights.
    pub(crate) fn needs_gradients(self) -> bool {
        self == Self::LoraGa
    }

    /// The initial value with this name in JSON.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        if let Some(steps) = name.strip_prefix("pissa_niter_") {
            return steps.parse().ok().map(Self::PissaNiter);
        }
        Some(match name {
            "default" => Self::Default,
            "gaussian" => Self::Gaussian,
            "random" => Self::Random,
            "pissa" => Self::Pissa,
            "olora" => Self::Olora,
            "orthogonal" => Self::Orthogonal,
            "mica" => Self::Mica,
            "eva" => Self::Eva,
            "corda" => Self::Corda,
            "lora_ga" => Self::LoraGa,
            "loftq" => Self::Loftq,
            _ => return None,
        })
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Gaussian => "gaussian",
            Self::Random => "random",
            Self::Pissa => "pissa",
            Self::PissaNiter(steps) => return write!(f, "pissa_niter_{steps}"),
            Self::Olora => "olora",
            Self::Orthogonal => "orthogonal",
            Self::Mica => "mica",
            Self::Eva => "eva",
            Self::Corda => "corda",
            Self::LoraGa => "lora_ga",
            Self::Loftq => "loftq",
        })
    }
}

impl Serialize for Init {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Init {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let unknown = || serde::de::Error::custom(format!("`{name}` is not an initial value"));
        Self::from_name(&name).ok_or_else(unknown)
    }
}

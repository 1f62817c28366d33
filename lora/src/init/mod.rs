//! Initial values of adapters: [`Init`] names them.

mod draw;

pub(crate) use draw::{AdapterInit, adapter_dtype, rng};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// How adapters start, PEFT's `init_lora_weights`.
///
/// The update is zero at first but for [`Random`](Init::Random). Some take values out of the base
/// weight and put them into the adapter: [`changes_base`](Init::changes_base).
///
/// In JSON it is one word, `"default"`, `"pissa"`, `"pissa_niter_4"` and so on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Init {
    /// A from U(−1/√fan_in, 1/√fan_in) and B zero; for an embedding A zero and B from N(0, 1).
    #[default]
    Default,
    /// A from N(0, 1/r) and B zero; for an embedding as [`Default`](Init::Default).
    Gaussian,
    /// A and B both random, so that a fresh adapter changes the output. For tests.
    Random,
}

impl Init {
    /// Whether the base weight loses what the adapter starts with, so that such an adapter fits no
    /// other base.
    pub fn changes_base(self) -> bool {
        false
    }

    /// The name in JSON.
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "default" => Self::Default,
            "gaussian" => Self::Gaussian,
            "random" => Self::Random,
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
        let unknown = || serde::de::Error::custom(format!("`{name}` is no initial value"));
        Self::from_name(&name).ok_or_else(unknown)
    }
}

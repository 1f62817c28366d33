//! [`Targets`]: which modules a setting means.

use serde::{Deserialize, Serialize};

/// A choice of modules by path, with PEFT's matching rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// A module matches when its path equals a name or ends with `.name`.
    Names(Vec<String>),
    /// A module matches when the regular expression matches its whole path. In
    /// [`target_modules`](crate::LoraConfig::target_modules) the word `all-linear`, in upper or
    /// lower case, means every linear layer except those called `lm_head`, `embed_out` or
    /// `output_layer`.
    Regex(String),
}

impl From<&str> for Targets {
    fn from(regex: &str) -> Self {
        Self::Regex(regex.into())
    }
}

impl From<String> for Targets {
    fn from(regex: String) -> Self {
        Self::Regex(regex)
    }
}

impl<S: Into<String>> From<Vec<S>> for Targets {
    fn from(names: Vec<S>) -> Self {
        Self::Names(names.into_iter().map(Into::into).collect())
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Targets {
    fn from(names: [S; N]) -> Self {
        Self::Names(names.into_iter().map(Into::into).collect())
    }
}

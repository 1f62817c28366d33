//! [`Part`]: the tensors that an adapter consists of, and their names.

use crate::path::join;

/// Patterns for the parameters of adapters, for [`transfer_weights`](crate::transfer_weights) to
/// ignore.
pub const LORA_WEIGHT_NAMES: &[&str] = &[
    Part::A.begin(false),
    Part::B.begin(false),
    Part::A.begin(true),
    Part::B.begin(true),
    Part::Magnitude.begin(false),
    "token_adapter",
];

/// Which tensor of an adapter a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// A, which maps the input to r values.
    A,
    /// B, which maps r values to the output.
    B,
    /// The bias of B.
    Bias,
    /// DoRA's magnitudes.
    Magnitude,
    /// Trained rows of an embedding.
    Tokens,
}

impl Part {
    pub(crate) const ALL: [Self; 5] = [Self::A, Self::B, Self::Bias, Self::Magnitude, Self::Tokens];

    /// The beginning and the end of the parameter's name; the adapter's name stands between them.
    /// `of_lookup` is true for an embedding, for whose matrices PEFT has other names.
    pub(crate) const fn ends(self, of_lookup: bool) -> (&'static str, &'static str) {
        match (self, of_lookup) {
            (Self::A, false) => ("lora_A", "weight"),
            (Self::A, true) => ("lora_embedding_A", ""),
            (Self::B, false) => ("lora_B", "weight"),
            (Self::B, true) => ("lora_embedding_B", ""),
            (Self::Bias, _) => ("lora_B", "bias"),
            (Self::Magnitude, _) => ("lora_magnitude_vector", ""),
            (Self::Tokens, _) => ("token_adapter.trainable_tokens_delta", ""),
        }
    }

    /// The parameter's name in its layer: `lora_A.default.weight`.
    pub(crate) fn name(self, of_lookup: bool, adapter: &str) -> String {
        let (begin, end) = self.ends(of_lookup);
        join(&join(begin, adapter), end)
    }

    /// PEFT's key for the parameter in its layer, without the adapter's name: `lora_A.weight`.
    pub(crate) fn key(self, of_lookup: bool) -> String {
        let (begin, end) = self.ends(of_lookup);
        join(begin, end)
    }

    /// The part of the name before the adapter's name: `lora_A`.
    const fn begin(self, of_lookup: bool) -> &'static str {
        self.ends(of_lookup).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_the_adapter_and_keys_do_not() {
        assert_eq!(Part::A.name(false, "default"), "lora_A.default.weight");
        assert_eq!(Part::A.name(true, "default"), "lora_embedding_A.default");
        assert_eq!(Part::Bias.name(false, "x"), "lora_B.x.bias");
        assert_eq!(Part::B.key(false), "lora_B.weight");
        assert_eq!(Part::B.key(true), "lora_embedding_B");
        assert_eq!(Part::Magnitude.key(true), "lora_magnitude_vector");
    }
}

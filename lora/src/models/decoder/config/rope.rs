//! How positions become angles.

use crate::models::keys::Keys;
use std::f64::consts::PI;

/// The rotary embedding of a layer's heads: how fast each pair of numbers turns.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rope {
    /// The base of the wavelengths.
    pub theta: f64,
    /// How many numbers of a head turn, from its first on: an even number.
    pub dim: usize,
    /// What makes the angles fit sequences longer than those of the pretraining.
    pub scaling: RopeScaling,
}

/// The scaling of a [`Rope`], with the names and formulas of transformers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// None.
    Default,
    /// All angles are divided by the factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// The base grows with a sequence that is longer than `original`.
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// The length up to which nothing changes.
        original: usize,
    },
    /// Slow pairs are slowed down, fast ones are not, <https://arxiv.org/abs/2309.00071>.
    Yarn {
        /// By how much slow pairs are slowed down.
        factor: f64,
        /// The length of the pretraining's sequences.
        original: usize,
        /// Pairs with more turns than the first within `original` are fast, with fewer than the
        /// second slow.
        beta: [f64; 2],
        /// Whether the border between fast and slow lies at whole pairs.
        truncate: bool,
        /// The factor of the rotated numbers.
        attention_factor: f64,
    },
    /// Llama 3.1's: as `Yarn`, with borders by wavelength.
    Llama3 {
        /// By how much slow pairs are slowed down.
        factor: f64,
        /// The length of the pretraining's sequences.
        original: usize,
        /// Pairs with fewer turns than the first within `original` are slow, with more than the
        /// second fast.
        borders: [f64; 2],
    },
    /// A divisor for each pair: one list for sequences up to `original`, one for longer ones.
    Longrope {
        /// The divisors for sequences up to `original`.
        short: Vec<f64>,
        /// The divisors for longer sequences.
        long: Vec<f64>,
        /// The length of the pretraining's sequences.
        original: usize,
        /// The factor of the rotated numbers.
        attention_factor: f64,
    },
}

impl Rope {
    /// Whether the angles depend on the length of the sequence.
    pub(in crate::models::decoder) fn varies(&self) -> bool {
        match &self.scaling {
            RopeScaling::Dynamic { .. } => true,
            RopeScaling::Longrope { short, long, .. } => short != long,
            _ => false,
        }
    }

    /// The factor of the rotated numbers.
    pub(in crate::models::decoder) fn attention_factor(&self) -> f64 {
        use RopeScaling::{Longrope, Yarn};
        match &self.scaling {
            Yarn {
                attention_factor, ..
            }
            | Longrope {
                attention_factor, ..
            } => *attention_factor,
            _ => 1.0,
        }
    }

    /// The angle by which each pair turns from one position to the next, in a sequence of this
    /// length.
    pub(in crate::models::decoder) fn frequencies(&self, length: usize) -> Vec<f64> {
        let dim = self.dim as f64;
        let of_base = |base: f64| -> Vec<f64> {
            let pairs = 0..self.dim / 2;
            pairs
                .map(|pair| base.powf(-2.0 * pair as f64 / dim))
                .collect()
        };
        let plain = of_base(self.theta);
        match &self.scaling {
            RopeScaling::Default => plain,
            RopeScaling::Linear { factor } => plain.iter().map(|f| f / factor).collect(),
            RopeScaling::Dynamic { factor, original } => {
                let times = length.max(*original) as f64 / *original as f64;
                let growth = factor * times - (factor - 1.0);
                of_base(self.theta * growth.powf(dim / (dim - 2.0)))
            }
            RopeScaling::Yarn {
                factor,
                original,
                beta,
                truncate,
                ..
            } => {
                // The pair that makes so many turns within the original length.
                let pair = |turns: f64| {
                    dim * (*original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (low, high) = match truncate {
                    true => (pair(beta[0]).floor(), pair(beta[1]).ceil()),
                    false => (pair(beta[0]), pair(beta[1])),
                };
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                let slowed = |(index, f): (usize, &f64)| {
                    let slow = ((index as f64 - low) / width).clamp(0.0, 1.0);
                    f / factor * slow + f * (1.0 - slow)
                };
                plain.iter().enumerate().map(slowed).collect()
            }
            RopeScaling::Llama3 {
                factor,
                original,
                borders: [low, high],
            } => {
                let slowed = |f: &f64| {
                    let turns = *original as f64 * f / (2.0 * PI);
                    let fast = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * (1.0 - fast) + f * fast
                };
                plain.iter().map(slowed).collect()
            }
            RopeScaling::Longrope {
                short,
                long,
                original,
                ..
            } => {
                let divisors = if length > *original { long } else { short };
                plain
                    .iter()
                    .zip(divisors)
                    .map(|(f, divisor)| f / divisor)
                    .collect()
            }
        }
    }
}

/// What a model says beside the object of its rope.
pub(super) struct Surroundings {
    pub(super) head_dim: usize,
    pub(super) max_position_embeddings: usize,
    /// The base where the object names none.
    pub(super) theta: f64,
    /// The share of a head that turns where the object says nothing.
    pub(super) partial: f64,
    /// The original length that goes before the object's.
    pub(super) original: Option<usize>,
    /// Phi-3, where only a share of a head may turn, and `su` and `yarn` mean `longrope`.
    pub(super) is_phi3: bool,
}

/// A base of wavelengths: a number above 1.
pub(super) fn base(keys: &Keys<'_>, key: &str, default: f64) -> f64 {
    let theta = keys.get(key, default);
    if theta > 1.0 && theta.is_finite() {
        return theta;
    }
    keys.refuse(key, "a number above 1 is expected");
    default
}

/// Reads the object `rope_parameters` or `rope_scaling`.
pub(super) fn read(keys: &Keys<'_>, around: &Surroundings) -> Rope {
    let kind: Option<String> = keys.find("rope_type");
    let older: Option<String> = keys.find("type");
    let kind = kind.or(older).unwrap_or_else(|| "default".into());
    let theta = base(keys, "rope_theta", around.theta);
    let partial = keys.get("partial_rotary_factor", around.partial);
    let dim = (around.head_dim as f64 * partial) as usize;
    if partial != 1.0 {
        let reason = match around.is_phi3 {
            false => Some("only Phi-3 turns a part of a head".into()),
            true if dim == 0 || dim > around.head_dim || dim % 2 == 1 => Some(format!(
                "{dim} of the {} numbers of a head would turn, an even number can",
                around.head_dim
            )),
            true => None,
        };
        let problem = |reason| format!("`partial_rotary_factor` is {partial}: {reason}");
        reason
            .map(problem)
            .into_iter()
            .for_each(|problem| keys.problem(problem));
    }
    let kind = match kind.as_str() {
        "su" | "yarn" if around.is_phi3 => "longrope",
        kind => kind,
    };
    let scaling = Reader { keys, around, dim }.scaling(kind);
    Rope {
        theta,
        dim,
        scaling,
    }
}

/// The scalings' settings.
struct Reader<'a, 'b> {
    keys: &'a Keys<'b>,
    around: &'a Surroundings,
    dim: usize,
}

impl Reader<'_, '_> {
    fn scaling(&self, kind: &str) -> RopeScaling {
        match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear {
                factor: self.factor(),
            },
            "dynamic" => {
                if self.dim == 2 {
                    self.keys.refuse(
                        "rope_type",
                        "it needs heads of which more than two numbers turn",
                    );
                }
                RopeScaling::Dynamic {
                    factor: self.factor(),
                    original: self.around.max_position_embeddings,
                }
            }
            "yarn" => self.yarn(),
            "llama3" => {
                let borders = [
                    self.keys.need("low_freq_factor"),
                    self.keys.need("high_freq_factor"),
                ];
                if borders[0] >= borders[1] {
                    self.keys
                        .refuse("high_freq_factor", "it must be above low_freq_factor");
                }
                RopeScaling::Llama3 {
                    factor: self.factor(),
                    original: self.original(),
                    borders,
                }
            }
            "longrope" => self.longrope(),
            _ => {
                let key = if self.keys.find::<String>("rope_type").is_some() {
                    "rope_type"
                } else {
                    "type"
                };
                let known = "supported are default, linear, dynamic, yarn, llama3, longrope";
                self.keys.refuse(key, known);
                RopeScaling::Default
            }
        }
    }

    fn yarn(&self) -> RopeScaling {
        let original = self.original();
        let ratio = self.around.max_position_embeddings as f64 / original as f64;
        let factor = match self.keys.find::<f64>("factor") {
            Some(_) => self.factor(),
            None => ratio,
        };
        let scale = |times: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * times * factor.ln() + 1.0
            }
        };
        let [mscale, of_all] = ["mscale", "mscale_all_dim"].map(|key| self.keys.get(key, 0.0));
        let inferred = match mscale != 0.0 && of_all != 0.0 {
            true => scale(mscale) / scale(of_all),
            false => scale(1.0),
        };
        RopeScaling::Yarn {
            factor,
            original,
            beta: [
                self.positive("beta_fast", 32.0),
                self.positive("beta_slow", 1.0),
            ],
            truncate: self.keys.get("truncate", true),
            attention_factor: self.keys.get("attention_factor", inferred),
        }
    }

    fn longrope(&self) -> RopeScaling {
        let original = self.original();
        let ratio = self.around.max_position_embeddings as f64 / original as f64;
        let factor = self.positive("factor", ratio);
        let inferred = match factor <= 1.0 {
            true => 1.0,
            false => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        let [short, long] = ["short_factor", "long_factor"].map(|key| {
            let divisors: Vec<f64> = self.keys.need(key);
            let are_positive = divisors.iter().all(|&divisor| divisor > 0.0);
            if divisors.len() != self.dim / 2 || !are_positive {
                let expected = format!("{} positive numbers are expected", self.dim / 2);
                self.keys.refuse(key, &expected);
            }
            divisors
        });
        let attention_factor = self.keys.get("attention_factor", inferred);
        RopeScaling::Longrope {
            short,
            long,
            original,
            attention_factor,
        }
    }

    fn factor(&self) -> f64 {
        self.keys.need::<f64>("factor");
        self.positive("factor", 1.0)
    }

    /// A number above zero.
    fn positive(&self, key: &str, default: f64) -> f64 {
        let value = self.keys.get(key, default);
        if !(value > 0.0 && value.is_finite()) {
            self.keys.refuse(key, "a number above 0 is expected");
        }
        value
    }

    fn original(&self) -> usize {
        const KEY: &str = "original_max_position_embeddings";
        let own = self.keys.get(KEY, self.around.max_position_embeddings);
        let original = self.around.original.unwrap_or(own);
        if original < 2 {
            self.keys.refuse(KEY, "a length of at least 2 is expected");
        }
        original.max(2)
    }
}

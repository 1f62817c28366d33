//! Which rank an adapter gets.

use clap::Args;
use lora::peft::RankChoice;

/// One of the two.
#[derive(Clone, Copy, Debug, Args)]
pub struct Rank {
    /// The rank of every layer, or what the layer has if that is less
    #[arg(long, value_name = "N", conflicts_with = "energy")]
    rank: Option<usize>,
    /// For each layer the least rank that keeps this share of its energy, the sum of the squared
    /// singular values: above 0 and at most 1
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,
}

impl Rank {
    /// The choice, if one was made.
    pub fn choice(self) -> Option<RankChoice> {
        match (self.rank, self.energy) {
            (_, Some(share)) => Some(RankChoice::Energy(share)),
            (Some(rank), None) => Some(RankChoice::Rank(rank)),
            (None, None) => None,
        }
    }
}

//! A rank that is of use: an update never has a higher one than the smaller side of its weight.

use anyhow::{Result, bail};
use lora::models::{self, Architecture, Options, Weights};
use lora::{LoraConfig, LoraModule};

/// Layers that a message names.
const NAMED: usize = 8;

/// Refuses a rank that is above the smaller side of every adapted weight. Where it is above that of
/// some, the library tells of them.
///
/// # Errors
/// If the rank is of no use anywhere, or the configuration does not fit the model.
pub fn check<M: Architecture>(model: &M::Config, config: &LoraConfig) -> Result<()> {
    // Of rank 1, and without the weights: with the rank itself it might not fit into memory.
    let mut smallest = config.clone();
    smallest.rank = 1;
    let shape = models::build::<M>(model, Weights::Placeholder, &Options::new())?.model;
    let rows = shape.to_lora(&smallest)?.summary().rows;
    let sides = rows
        .iter()
        .filter_map(|row| Some((row.path.as_str(), row.largest_rank?)));
    let sides: Vec<(&str, usize)> = sides.collect();
    let most = sides.iter().map(|(_, side)| *side).max().unwrap_or(0);
    if config.rank <= most || sides.is_empty() {
        return Ok(());
    }
    let named = sides.iter().take(NAMED);
    let mut layers: Vec<_> = named
        .map(|(path, side)| format!("{path} ({side})"))
        .collect();
    if sides.len() > NAMED {
        layers.push(format!("and {} more", sides.len() - NAMED));
    }
    bail!(
        "--rank is {}, above the smaller side of every adapted weight; it must be at most {most}: {}",
        config.rank,
        layers.join(", ")
    );
}

//! A rank that is of use: an update never has a higher one than the smaller side of its weight.

use anyhow::{Result, bail};
use lora::models::{self, Architecture, Options, Weights};
use lora::{LoraConfig, LoraModule};

/// Layers that a message names.
const NAMED: usize = 8;

/// What is to be said of the configuration's rank: it is above the smaller side of some weights.
///
/// # Errors
/// If it is above that of every weight, or the configuration does not fit the model.
pub fn check<M: Architecture>(model: &M::Config, config: &LoraConfig) -> Result<Option<String>> {
    // Of rank 1, and without the weights: with the rank itself it might not fit into memory.
    let mut smallest = config.clone();
    smallest.rank = 1;
    let shape = models::build::<M>(model, Weights::Placeholder, &Options::new())?.model;
    let rows = shape.to_lora(&smallest)?.summary().rows;
    let adapted = rows.iter().filter(|row| row.rank.is_some());
    let sides: Vec<(&str, usize)> = adapted
        .map(|row| {
            let outputs = row.shape.first().copied().unwrap_or(0);
            let inputs = row.shape.iter().skip(1).product();
            (row.path.as_str(), outputs.min(inputs))
        })
        .collect();
    let rank = config.rank;
    let smaller: Vec<_> = sides.iter().filter(|(_, side)| rank > *side).collect();
    if smaller.is_empty() {
        return Ok(None);
    }
    let named = smaller.iter().take(NAMED);
    let mut layers: Vec<_> = named
        .map(|(path, side)| format!("{path} ({side})"))
        .collect();
    if smaller.len() > NAMED {
        layers.push(format!("and {} more", smaller.len() - NAMED));
    }
    let layers = layers.join(", ");
    if smaller.len() == sides.len() {
        let most = sides.iter().map(|(_, side)| *side).max().unwrap_or(0);
        bail!(
            "--rank is {rank}, above the smaller side of every adapted weight; it must be at most \
             {most}: {layers}"
        );
    }
    Ok(Some(format!(
        "note: --rank {rank} is above the smaller side of {} of {} adapted weights and is of no use \
         there: {layers}",
        smaller.len(),
        sides.len()
    )))
}

//! A rank that is of use: an update never has a higher one than the smaller side of its weight.

use super::{Architecture, Options, Weights, build};
use crate::{Error, LoraConfig, LoraModule, Result};

/// Layers that a message names.
const NAMED: usize = 8;

/// Refuses a rank that is above the smaller side of every adapted weight, without the model's weights and
/// before the adapters take memory. Where it is above that of some, the conversion tells of them.
///
/// ```
/// use lora::LoraConfig;
/// use lora::models::{self, Architecture, convnext::ConvNext};
///
/// let variant = ConvNext::variants().iter().find(|one| one.name == "convnext_atto").unwrap();
/// models::check_rank::<ConvNext>(&variant.config, &LoraConfig::new(8))?;
/// let error = models::check_rank::<ConvNext>(&variant.config, &LoraConfig::new(1 << 40)).unwrap_err();
/// assert!(error.to_string().contains("rank is 1099511627776, above the smaller side"));
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// [`Error::Config`] if the rank is of no use anywhere, or the configuration does not fit the model.
pub fn check_rank<M: Architecture>(model: &M::Config, config: &LoraConfig) -> Result<()> {
    // Of rank 1, without what a start by the weight or by data would need, and without quantised weights.
    let mut smallest = config.clone();
    smallest.rank = 1;
    smallest.init = crate::Init::Default;
    smallest.quantize = None;
    smallest.quantize_modules = None;
    let shape = build::<M>(model, Weights::Placeholder, &Options::new())?.model;
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
    Err(Error::Config(vec![format!(
        "rank is {}, above the smaller side of every adapted weight; it must be at most {most}: {}",
        config.rank,
        layers.join(", ")
    )]))
}

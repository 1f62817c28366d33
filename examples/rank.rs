//! A rank that is of use: an update never has a higher one than the smaller side of its weight.

use anyhow::{Result, anyhow};
use lora::models::{Architecture, check_rank};
use lora::{Error, LoraConfig};

/// Refuses a rank that is above the smaller side of every adapted weight. Where it is above that of
/// some, the library tells of them.
///
/// # Errors
/// If the rank is of no use anywhere, or the configuration does not fit the model.
pub fn check<M: Architecture>(model: &M::Config, config: &LoraConfig) -> Result<()> {
    check_rank::<M>(model, config).map_err(|error| match error {
        // In the words of the command line.
        Error::Config(problems) if problems[0].starts_with("rank is ") => {
            anyhow!("--{}", problems[0])
        }
        error => error.into(),
    })
}

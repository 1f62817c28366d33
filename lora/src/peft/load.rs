//! Loading an adapter.

use super::describe::Description;
use super::weights::Weights;
use super::{AdapterConfig, files};
use crate::builder::Builder;
use crate::path::join;
use crate::transfer::assign;
use crate::{DEFAULT_ADAPTER, Error, LoraModel, LoraModule, Result};
use std::path::Path;

/// Loads an adapter into a model that has one of the same form.
pub(crate) fn load<M: LoraModule>(model: &mut M, dir: &Path) -> Result<()> {
    let config = AdapterConfig::read(dir)?;
    let bytes = files::read_weights(dir)?;
    let weights = Weights::parse(dir, &bytes)?;
    put(model, &config, weights, dir)
}

/// The LoRA model that the directory describes, in eval mode.
pub(crate) fn load_new<B: LoraModel>(base: &B, dir: &Path) -> Result<B::Lora> {
    let config = AdapterConfig::read(dir)?;
    let bytes = files::read_weights(dir)?;
    let weights = Weights::parse(dir, &bytes)?;

    let frozen = Description::of(&base.to_frozen()?, DEFAULT_ADAPTER);
    let lora = config.to_lora_config();
    let problems = weights.check_ranks(&frozen.planned(&lora)?);
    if !problems.is_empty() {
        return Err(Error::File {
            path: dir.into(),
            problems,
        });
    }
    let mut model = Builder::convert_for_values(base, &lora)?;
    put(&mut model, &config, weights, dir)?;
    model.eval();
    Ok(model)
}

/// Checks everything, then puts the values into the model.
fn put<M: LoraModule>(
    model: &mut M,
    config: &AdapterConfig,
    weights: Weights<'_>,
    dir: &Path,
) -> Result<()> {
    let description = Description::of(model, DEFAULT_ADAPTER);
    let mut problems = description.disagreements(&config.to_lora_config())?;
    if description.sites.iter().any(|site| site.merged) {
        problems.push("the model is merged: call unmerge() before loading".into());
    }
    let entries = description.entries(DEFAULT_ADAPTER);
    let values = weights.values(&entries, &description, &mut problems);
    if !problems.is_empty() {
        return Err(Error::File {
            path: dir.into(),
            problems,
        });
    }
    let paths = entries.iter().map(|entry| join(&entry.path, &entry.name));
    assign(model, &paths.zip(values).collect())
}

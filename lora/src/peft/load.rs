//! Loading an adapter.

use super::describe::Description;
use super::weights::Weights;
use super::{AdapterConfig, CONFIG_FILE, files};
use crate::builder::Builder;
use crate::path::join;
use crate::transfer::assign;
use crate::{DEFAULT_ADAPTER, Error, LoraConfig, LoraModel, LoraModule, Result};
use std::path::Path;

/// Loads an adapter into a model that has one of the same form.
pub(crate) fn load<M: LoraModule>(model: &mut M, dir: &Path) -> Result<()> {
    let lora = settings(dir)?;
    let bytes = files::read_weights(dir)?;
    let weights = Weights::parse(dir, &bytes)?;
    put(model, &lora, weights, dir)
}

/// The LoRA model that the directory describes, in eval mode.
pub(crate) fn load_new<B: LoraModel>(base: &B, dir: &Path) -> Result<B::Lora> {
    let lora = settings(dir)?;
    let bytes = files::read_weights(dir)?;
    let weights = Weights::parse(dir, &bytes)?;

    let frozen = Description::of(&base.to_frozen()?, DEFAULT_ADAPTER);
    let problems = weights.check_ranks(&frozen.planned(&lora)?);
    if !problems.is_empty() {
        return Err(Error::File {
            path: dir.into(),
            problems,
        });
    }
    let mut model = Builder::convert_for_values(base, &lora)?;
    put(&mut model, &lora, weights, dir)?;
    model.eval();
    Ok(model)
}

/// The settings of the directory, where a model can have them.
fn settings(dir: &Path) -> Result<LoraConfig> {
    let file = AdapterConfig::read(dir)?;
    let settings = file.lora_config().and_then(|config| {
        let mut problems = refused(&config);
        if file.init_lora_weights.changes_base() {
            problems.push(format!(
                "`init_lora_weights` is \"{}\", which changes the base model: convert the adapter \
                 with PEFT's path_initial_model_for_weight_conversion",
                config.init
            ));
        }
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(problems)
        }
    });
    settings.map_err(|problems| Error::File {
        path: dir.join(CONFIG_FILE),
        problems,
    })
}

/// Settings that layers do not have.
fn refused(config: &LoraConfig) -> Vec<String> {
    let features = [
        ("use_dora", config.use_dora, "DoRA"),
        ("lora_bias", config.lora_bias, "a bias on B"),
        (
            "layers_to_transform",
            !config.layers_to_transform.is_empty(),
            "a choice of layers by number",
        ),
        (
            "trainable_token_indices",
            !config.trainable_token_indices.is_empty(),
            "trained tokens",
        ),
        (
            "target_parameters",
            !config.target_parameters.is_empty(),
            "adapters on parameters",
        ),
        (
            "ensure_weight_tying",
            config.ensure_weight_tying,
            "tied adapters",
        ),
    ];
    let on = features.iter().filter(|(_, on, _)| *on);
    on.map(|(key, _, what)| format!("`{key}` is set: {what} cannot be loaded into a model"))
        .collect()
}

/// Checks everything, then puts the values into the model.
fn put<M: LoraModule>(
    model: &mut M,
    config: &LoraConfig,
    weights: Weights<'_>,
    dir: &Path,
) -> Result<()> {
    let description = Description::of(model, DEFAULT_ADAPTER);
    let mut problems = description.disagreements(config)?;
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

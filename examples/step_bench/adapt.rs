//! The model that the options ask for, and what of it is trained.

use super::options::{Args, Choice, Mode, Recompute, Variant};
use crate::rank;
use anyhow::{Context, Result, bail};
use lora::models::{self, Architecture, Options, Weights};
use lora::{Lora, LoraConfig, LoraModule};

/// The parts of a model that the options speak of.
pub(super) struct Parts {
    /// The blocks, as a regular expression of their paths.
    pub(super) blocks: Option<&'static str>,
    /// The MLPs whose hidden values can be computed anew.
    pub(super) mlps: Option<&'static str>,
    /// The modules that hold all parameters.
    pub(super) all: Vec<&'static str>,
}

/// The model with its adapters, and its configuration.
pub(super) fn model<M: Architecture>(
    args: &Args,
    config: &M::Config,
    options: &Options,
    parts: impl FnOnce(&M::Config) -> Parts,
) -> Result<(Lora<M>, M::Config)> {
    let weights = match &args.weights {
        Some(path) => Weights::File(path.clone()),
        None => Weights::Random(args.seed),
    };
    let options = options.clone().seed(args.seed);
    let created = models::build::<M>(config, weights, &options);
    let created = match &args.weights {
        Some(path) => created.with_context(|| format!("--weights {}", path.display()))?,
        None => created?,
    };
    let parts = parts(&created.config);
    let model = adapted(args, created.model, &created.config, parts)?;
    Ok((model.to_dtype(args.dtype.dtype())?, created.config))
}

/// A model with what the options train of it.
pub(super) fn adapted<M: Architecture>(
    args: &Args,
    base: M,
    config: &M::Config,
    parts: Parts,
) -> Result<Lora<M>> {
    let adapters = adapters(args, &parts)?;
    Ok(match args.mode {
        Mode::Lora => {
            rank::check::<M>(config, &adapters)?;
            base.to_lora(&adapters)?
        }
        Mode::Full => base.to_lora(&adapters.modules_to_save(parts.all))?,
        Mode::Base => base.to_frozen()?,
    })
}

fn adapters(args: &Args, parts: &Parts) -> Result<LoraConfig> {
    let config = LoraConfig::new(args.rank)
        .seed(args.seed)
        .use_dora(args.variant == Variant::Dora);
    // What the models mark are queries and values, where they have such.
    let config = match (args.targets, args.mode) {
        (Choice::AllLinear, Mode::Lora) => config.target_modules("all-linear"),
        _ => config,
    };
    let (name, part) = match args.recompute {
        Recompute::None => return Ok(config),
        Recompute::Mlp => ("mlp", parts.mlps),
        Recompute::Block => ("block", parts.blocks),
    };
    match part {
        Some(part) => Ok(config.recompute(part)),
        None => bail!(
            "--recompute {name}: {} has no such part to switch",
            args.model
        ),
    }
}

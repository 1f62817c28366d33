//! The model's paths beside the names of its checkpoint.

use anyhow::{Result, ensure};
use candle_core::TensorId;
use lora::{Kind, LoraModule, NamedParam};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Each name of the checkpoint has its parameter. What a constructor computes, such as a table of
/// positions, has no name, and neither has a tied head: that is no miss, as long as no name is left over.
///
/// A constructor may make one weight of several tensors. Then the parameter is new, and its layer must
/// be the place of the tensors. Some heads have a bias outside of their module: the layer is where the
/// weight is.
pub fn compare(params: &[NamedParam], asked: &BTreeMap<String, TensorId>) -> Result<()> {
    let layers: BTreeSet<&str> = params.iter().map(NamedParam::layer).collect();
    let known = params
        .iter()
        .filter(|param| asked.contains_key(&param.path));
    let known: BTreeSet<&str> = known.map(NamedParam::layer).collect();
    let paths: BTreeSet<&str> = params.iter().map(|param| param.path.as_str()).collect();
    let beside = params.iter().filter(|param| known.contains(param.layer()));
    let beside: HashSet<TensorId> = beside.map(|param| param.tensor.id()).collect();
    let is_held = |(name, id): &(&String, &TensorId)| {
        paths.contains(name.as_str()) || layers.contains(module(name)) || beside.contains(id)
    };
    let lost = asked.iter().filter(|name| !is_held(name));
    let lost: Vec<_> = lost.map(|(name, _)| name.as_str()).collect();
    let unknown = params
        .iter()
        .filter(|param| !asked.contains_key(&param.path));
    let unknown: Vec<_> = unknown.map(|param| param.path.as_str()).collect();
    ensure!(
        lost.is_empty(),
        "{} of {} names have no parameter: {}; parameters without a name: {}",
        lost.len(),
        asked.len(),
        lost.join(", "),
        unknown.join(", ")
    );
    Ok(())
}

/// The layers that PEFT's adapters can go on. Other parameters, such as a bare tensor, take none.
const ADAPTED: [Kind; 4] = [Kind::Conv1d, Kind::Conv2d, Kind::Embedding, Kind::Linear];

/// Each layer that takes an adapter is at its checkpoint's name, or shares the weight of one that is.
pub fn adapted<M: LoraModule>(frozen: &M, asked: &BTreeMap<String, TensorId>) -> Result<()> {
    let modules: BTreeSet<&str> = asked.keys().map(|name| module(name)).collect();
    let given: HashSet<TensorId> = asked.values().copied().collect();
    let weights: BTreeMap<String, TensorId> = (frozen.named_params().iter().rev())
        .map(|param| (param.layer().to_string(), param.tensor.id()))
        .collect();
    let rows = frozen.summary().rows;
    let rows: Vec<_> = (rows.iter())
        .filter(|row| ADAPTED.contains(&row.kind))
        .collect();
    let is_placed = |path: &str| {
        let weight = weights.get(path);
        modules.contains(path) || weight.is_some_and(|weight| given.contains(weight))
    };
    let lost = rows.iter().filter(|row| !is_placed(&row.path));
    let lost: Vec<_> = lost.map(|row| row.path.as_str()).collect();
    ensure!(
        lost.is_empty(),
        "{} of {} layers are elsewhere: {}",
        lost.len(),
        rows.len(),
        lost.join(", ")
    );
    Ok(())
}

/// The module of a tensor, by its name. The parts of a normalised weight stand below the module.
fn module(name: &str) -> &str {
    match name.split_once(".parametrizations.") {
        Some((module, _)) => module,
        None => name.rsplit_once('.').map_or("", |(module, _)| module),
    }
}

//! Merging the adapters of a whole model: every layer or none.

use super::active::active;
use super::checks::{checked, refuse_overlapping_rows, refuse_view, unknown};
use crate::adapter::merging;
use crate::error::warn;
use crate::traits::{each_layer, each_layer_mut, try_each_layer_mut};
use crate::{Adapted, LoraModule, Result};

/// Merges the active adapters. Adapters that are merged already stay so.
pub(crate) fn merge<M: LoraModule>(model: &mut M) -> Result<()> {
    each_merged(model, |layer| {
        let names = layer.adapters().to_merge();
        merging::set_merged(layer, &names)
    })
}

/// As [`merge`]; quantised weights are in full precision while they are merged.
pub(crate) fn merge_in_full<M: LoraModule>(model: &mut M) -> Result<()> {
    each_merged(model, |layer| {
        let names = layer.adapters().to_merge();
        merging::set_merged_as(layer, &names, true)
    })
}

/// Merges these adapters, active or not. Adapters that are merged already stay so.
pub(crate) fn merge_adapters<M: LoraModule>(model: &mut M, names: &[&str]) -> Result<()> {
    let mut problems = unknown(model, names);
    let (active, present) = (active(model), merged(model));
    let beside = active.iter().chain(&present).map(String::as_str);
    let acting: Vec<&str> = names.iter().copied().chain(beside).collect();
    refuse_overlapping_rows(model, &acting, &mut problems);
    each_layer(model, |path, layer| {
        let Some(adapters) = layer.adapted().map(|layer| layer.adapters()) else {
            return;
        };
        for name in names {
            // The residual base is in the layer only while its adapter is active. The original base
            // still holds the start, which merging would add once more.
            let starts = adapters
                .get(name)
                .is_some_and(|adapter| adapter.initial.is_some());
            if starts && adapters.copies.current() != Some(name) {
                problems.push(format!(
                    "`{name}` fits the residual base of `{path}`, which is in place only while \
                     `{name}` is active: call set_active() first"
                ));
            }
        }
    });
    checked(problems)?;
    each_merged(model, |layer| {
        let mut all = layer.adapters().merged().to_vec();
        for name in names {
            if !all.iter().any(|known| known == name) {
                all.push(name.to_string());
            }
        }
        merging::set_merged(layer, &all)
    })
}

/// Takes these adapters out of the weights again; the others stay merged.
pub(crate) fn unmerge_adapters<M: LoraModule>(model: &mut M, names: &[&str]) -> Result<()> {
    checked(unknown(model, names))?;
    each_merged(model, |layer| {
        let mut rest = layer.adapters().merged().to_vec();
        rest.retain(|name| !names.contains(&name.as_str()));
        merging::set_merged(layer, &rest)
    })
}

/// Merges, in each layer of `like`, the adapters that are merged in the same layer of `model`. Both
/// models have the same layers.
pub(crate) fn merge_like<M: LoraModule>(model: &M, like: &mut M) -> Result<()> {
    let mut merged = Vec::new();
    each_layer(model, |_, layer| {
        merged.extend(layer.adapted().map(|layer| {
            let adapters = layer.adapters();
            (adapters.merged().to_vec(), adapters.is_merged_in_full())
        }));
    });
    let mut merged = merged.into_iter();
    try_each_layer_mut(like, |_, layer| match layer.adapted_mut() {
        Some(layer) => {
            let (names, in_full) = merged.next().unwrap_or_default();
            merging::set_merged_as(layer, &names, in_full)
        }
        None => Ok(()),
    })
}

/// Changes every layer, or none. The change is made to a clone, which shares all tensors, so that a
/// layer that fails leaves the model as it was.
fn each_merged<M: LoraModule>(
    model: &mut M,
    f: impl Fn(&mut dyn Adapted) -> Result<()>,
) -> Result<()> {
    let mut problems = Vec::new();
    refuse_view(model, &mut problems);
    checked(problems)?;
    let mut changed = model.clone();
    try_each_layer_mut(&mut changed, |_, layer| match layer.adapted_mut() {
        Some(layer) => f(layer),
        None => Ok(()),
    })?;
    *model = changed;
    if let Some(note) = requantised(model) {
        warn(&note);
    }
    Ok(())
}

/// What quantising the merged weights again has changed, if any are quantised.
fn requantised<M: LoraModule>(model: &M) -> Option<String> {
    let mut errors = Vec::new();
    each_layer(model, |path, layer| {
        let adapters = layer.adapted().map(|layer| layer.adapters());
        let error = adapters.and_then(|adapters| adapters.requantising_error());
        errors.extend(error.map(|error| (error, path.to_string())));
    });
    let (worst, path) = errors.iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(format!(
        "{} merged weights were quantised again, to their type: each is off by up to {worst:.1e} of its \
         size, most at `{path}`. Adapters::requantising_error tells of each layer, unmerge() puts the \
         blocks back",
        errors.len()
    ))
}

pub(crate) fn unmerge<M: LoraModule>(model: &mut M) {
    each_layer_mut(model, |_, layer| {
        if let Some(layer) = layer.adapted_mut() {
            merging::unmerge(layer);
        }
    });
}

/// True if any layer is merged.
pub(crate) fn is_merged<M: LoraModule>(model: &M) -> bool {
    !merged(model).is_empty()
}

/// The names of the merged adapters, in the order in which the walk meets them.
pub(crate) fn merged<M: LoraModule>(model: &M) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    each_layer(model, |_, layer| {
        let merged = layer.adapted().map(|layer| layer.adapters().merged());
        for name in merged.into_iter().flatten() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    });
    names
}

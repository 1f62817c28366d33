//! Which adapters a model has, which of them act, which are trained.

use super::checks::{
    checked, refuse_merged, refuse_merged_of, refuse_overlapping_rows, refuse_trained_fields,
    unknown,
};
use super::merge::{is_merged, merge_like, unmerge};
use super::tie::retie;
use crate::adapter::AdaptedMut;
use crate::adapter::copies;
use crate::traits::{each_layer, try_each_layer_mut};
use crate::{Layer, LoraModule, Result};

/// The names of all adapters, in the order in which the walk meets them.
pub(crate) fn names<M: LoraModule>(model: &M) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    each_layer(model, |_, layer| {
        for name in names_at(layer) {
            if !names.iter().any(|known| known == name) {
                names.push(name.into());
            }
        }
    });
    names
}

fn names_at(layer: &dyn Layer) -> Vec<&str> {
    let adapters = layer.adapted().into_iter();
    let tensors = adapters.flat_map(|layer| layer.adapters().tensors());
    let mut names: Vec<&str> = tensors.map(|(name, ..)| name).collect();
    names.extend(layer.copies().iter().flat_map(|copies| copies.adapters()));
    names
}

/// The names of the active adapters, in the order in which they apply.
pub(crate) fn active<M: LoraModule>(model: &M) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    each_layer(model, |_, layer| {
        let active = layer.adapted().map(|layer| &layer.adapters().active);
        let active = active.into_iter().flatten().map(String::as_str);
        for name in active.chain(layer.copies().and_then(|copies| copies.current())) {
            if !names.iter().any(|known| known == name) {
                names.push(name.into());
            }
        }
    });
    names
}

/// Activates these adapters and trains only these, without the checks of [`set_active`].
pub(crate) fn activate<M: LoraModule>(model: &mut M, names: &[&str]) -> Result<()> {
    let all = self::names(model);
    let change = |layer: &mut dyn Layer| {
        for name in &all {
            set_layer_trainable(layer, name, names.contains(&name.as_str()))?;
        }
        activate_layer(layer, names)
    };
    change_layers(model, |_, layer| change(layer))
}

/// Activates these adapters at a layer. Which adapters are trained stays as it is.
pub(crate) fn activate_layer(layer: &mut dyn Layer, names: &[&str]) -> Result<()> {
    if let Some(adapted) = layer.adapted_mut() {
        adapted.adapters_mut().active = names.iter().map(|name| name.to_string()).collect();
    }
    let copies = layer.copies();
    let copied = names
        .iter()
        .find(|name| copies.is_some_and(|copies| copies.has(name)));
    copies::switch(layer, copied.copied())
}

pub(super) fn set_layer_trainable(
    layer: &mut dyn Layer,
    name: &str,
    trainable: bool,
) -> Result<()> {
    if let Some(adapted) = layer.adapted_mut() {
        adapted.adapters_mut().set_trainable(name, trainable)?;
    }
    copies::set_copy_trainable(layer, name, trainable)
}

/// Changes each layer, then ties anew: the change may have replaced tensors that heads share.
pub(super) fn change_layers<M: LoraModule>(
    model: &mut M,
    f: impl FnMut(&str, &mut dyn Layer) -> Result<()>,
) -> Result<()> {
    try_each_layer_mut(model, f)?;
    retie(model)
}

pub(crate) fn set_active<M: LoraModule>(model: &mut M, names: &[&str]) -> Result<()> {
    let mut problems = unknown(model, names);
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            problems.push(format!("`{name}` is named twice"));
        }
    }
    refuse_merged(model, &mut problems);
    refuse_overlapping_rows(model, names, &mut problems);
    // Two copies cannot act together: a layer has one place for its own parameters.
    each_layer(model, |path, layer| {
        let Some(copies) = layer.copies() else {
            return;
        };
        let copied = names.iter().filter(|name| copies.has(name));
        let copied: Vec<String> = copied.map(|name| format!("`{name}`")).collect();
        if copied.len() > 1 {
            problems.push(format!(
                "{} each have a copy of `{path}`'s own parameters: only one of them can be active",
                copied.join(" and ")
            ));
        }
    });
    if names.len() != 1 {
        refuse_trained_fields(model, &mut problems);
    }
    checked(problems)?;
    activate(model, names)
}

/// Activates these adapters. Which adapters are trained stays as it is.
pub(crate) fn reactivate<M: LoraModule>(model: &mut M, names: &[String]) -> Result<()> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut problems = Vec::new();
    refuse_overlapping_rows(model, &names, &mut problems);
    checked(problems)?;
    change_layers(model, |_, layer| activate_layer(layer, &names))
}

/// True if any tensor of the adapter is trained.
pub(crate) fn is_trained<M: LoraModule>(model: &M, name: &str) -> bool {
    let mut trained = false;
    each_layer(model, |_, layer| {
        let adapters = layer.adapted().map(|layer| layer.adapters()).into_iter();
        let mut tensors = adapters.flat_map(|adapters| adapters.tensors());
        trained |= tensors.any(|(of, _, tensor)| of == name && tensor.is_variable());
        let has_copy = layer.copies().is_some_and(|copies| copies.has(name));
        let mut own = copies::seen_by(layer, name).into_iter();
        trained |= has_copy && own.any(|own| own.param.tensor.is_variable());
    });
    trained
}

pub(crate) fn set_adapter_trainable<M: LoraModule>(
    model: &mut M,
    name: &str,
    trainable: bool,
) -> Result<()> {
    let mut problems = unknown(model, &[name]);
    if !trainable {
        refuse_trained_fields(model, &mut problems);
    }
    checked(problems)?;
    while_unmerged(model, |model| {
        change_layers(model, |_, layer| {
            set_layer_trainable(layer, name, trainable)
        })
    })
}

/// Unmerges, makes a change, and merges the same adapters again: while a layer is merged, its
/// copies cannot be switched. The model changes only if all of this succeeds.
pub(super) fn while_unmerged<M: LoraModule>(
    model: &mut M,
    change: impl FnOnce(&mut M) -> Result<()>,
) -> Result<()> {
    if !is_merged(model) {
        return change(model);
    }
    let mut changed = model.clone();
    unmerge(&mut changed);
    change(&mut changed)?;
    merge_like(model, &mut changed)?;
    *model = changed;
    Ok(())
}

pub(crate) fn set_scale<M: LoraModule>(model: &mut M, name: &str, scale: f64) -> Result<()> {
    let mut problems = unknown(model, &[name]);
    refuse_merged_of(model, name, &mut problems);
    if !scale.is_finite() {
        problems.push(format!("the scale is {scale}: it must be finite"));
    }
    checked(problems)?;
    change_layers(model, |_, layer| {
        if let Some(adapted) = layer.adapted_mut()
            && let Some(adapter) = adapted.adapters_mut().get_mut(name)
        {
            adapter.scale = scale;
        }
        Ok(())
    })
}

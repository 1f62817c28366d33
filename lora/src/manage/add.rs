//! Adding, renaming and deleting adapters.

use super::active::{change_layers, set_layer_trainable, while_unmerged};
use super::checks::{
    check_new, checked, refuse_merged, refuse_merged_of, refuse_trained_fields, unknown,
};
use super::tie;
use crate::adapter::copies;
use crate::adapter::{Access, AdaptedMut, Adapter};
use crate::config::selection::Selection;
use crate::convert::{Attach, Values};
use crate::{LoraConfig, LoraModule, Result};

/// Adds a fresh adapter, which is neither active nor trained.
pub(crate) fn add<M: LoraModule>(
    model: &mut M,
    name: &str,
    config: &LoraConfig,
    values: Values<'_>,
) -> Result<()> {
    let mut problems = Vec::new();
    check_new(model, name, &mut problems);
    refuse_trained_fields(model, &mut problems);
    refuse_merged(model, &mut problems);
    if config.init.is_lasting() {
        let problem = format!(
            "`{}` quantises the base for good, which would change what the other adapters compute: \
             only a conversion can use it",
            config.init
        );
        problems.push(problem);
    }
    if config.recompute.is_some() {
        let problem = "recompute is set when a model is converted, not by a further adapter";
        problems.push(problem.into());
    }
    checked(problems)?;
    config.validate()?;
    // Changed in a copy: a problem at any layer leaves the model as it was.
    let mut attach = Attach::new(name, config, Selection::new(config)?, values);
    let mut changed = model.clone();
    change_layers(&mut changed, |path, layer| {
        let is_field = layer.copies().is_none();
        // The new adapter starts from the base's parameters, not from another adapter's copy.
        let current = layer.copies().and_then(|copies| copies.current());
        let current = current.map(String::from);
        copies::switch(layer, None)?;
        attach.layer(path, layer)?;
        copies::switch(layer, current.as_deref())?;
        if is_field
            && layer
                .params()
                .iter()
                .any(|param| param.tensor.is_variable())
        {
            attach.problems.push(format!(
                "`{path}` is a tensor that is a field of the model: only the adapter of the \
                 conversion can train it, not an added one"
            ));
        }
        if let Some(adapted) = layer.adapted_mut() {
            let adapters = adapted.adapters();
            if adapters.get(name).is_some_and(Adapter::fits_changed_base) {
                attach.problems.push(format!(
                    "`{path}` is quantised: `{}` would change its blocks for good, and so what the \
                     other adapters compute: only a conversion can use it",
                    config.init
                ));
            }
            let active = adapted.adapters_mut();
            active.active.retain(|active| active != name);
        }
        set_layer_trainable(layer, name, false)
    })?;
    let ties = ties(&changed, name, config, values);
    attach.problems.extend(ties);
    attach.finish(Vec::new())?;
    *model = changed;
    Ok(())
}

/// The problems that keep `ensure_weight_tying`, where it is set, from having its effect, and rows
/// from being trained.
pub(crate) fn ties<M: LoraModule>(
    model: &M,
    name: &str,
    config: &LoraConfig,
    values: Values<'_>,
) -> Vec<String> {
    let mut problems = tie::rows_problems(model, name, config);
    // Values of a file need no such check: each of them must find its place in any case.
    if config.ensure_weight_tying && !values.come_later() {
        problems.extend(tie::problems(model, name));
    }
    problems
}

pub(crate) fn delete<M: LoraModule>(model: &mut M, name: &str) -> Result<()> {
    let mut problems = unknown(model, &[name]);
    refuse_trained_fields(model, &mut problems);
    refuse_merged_of(model, name, &mut problems);
    checked(problems)?;
    while_unmerged(model, |model| {
        change_layers(model, |_, layer| {
            // The layer must have its own parameters back before the copy is forgotten.
            if layer.copies().and_then(|copies| copies.current()) == Some(name) {
                copies::switch(layer, None)?;
            }
            if let Some(copies) = layer.copies_mut(Access::new()) {
                copies.remove(name);
            }
            if let Some(adapted) = layer.adapted_mut() {
                let adapters = adapted.adapters_mut();
                adapters.list.retain(|adapter| adapter.name() != name);
                adapters.tokens.retain(|tokens| tokens.adapter() != name);
                adapters.active.retain(|active| active != name);
            }
            Ok(())
        })
    })
}

pub(crate) fn rename<M: LoraModule>(model: &mut M, from: &str, to: &str) -> Result<()> {
    let mut problems = unknown(model, &[from]);
    check_new(model, to, &mut problems);
    checked(problems)?;
    change_layers(model, |_, layer| {
        if let Some(copies) = layer.copies_mut(Access::new()) {
            copies.rename(from, to);
        }
        if let Some(adapted) = layer.adapted_mut() {
            adapted.adapters_mut().rename(from, to);
        }
        Ok(())
    })
}

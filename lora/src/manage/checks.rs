//! What stands in the way of a change to a model's adapters, as problems.

use super::{is_merged, merged, names};
use crate::adapter::check_name;
use crate::traits::each_layer;
use crate::{Error, LoraModule, Result};

/// What is wrong with the name of a new adapter.
pub(crate) fn check_new<M: LoraModule>(model: &M, name: &str, problems: &mut Vec<String>) {
    if let Err(Error::Config(bad)) = check_name(name) {
        problems.extend(bad);
    }
    if names(model).iter().any(|known| known == name) {
        problems.push(format!("there is an adapter `{name}` already"));
    }
}

/// The names that no adapter has, as problems.
pub(crate) fn unknown<M: LoraModule>(model: &M, names: &[&str]) -> Vec<String> {
    let known = self::names(model);
    let unknown = names
        .iter()
        .filter(|name| !known.iter().any(|k| k == *name));
    let list = match known.is_empty() {
        true => "none".into(),
        false => known.join(", "),
    };
    unknown
        .map(|name| format!("there is no adapter `{name}`; the model has: {list}"))
        .collect()
}

pub(crate) fn refuse_merged<M: LoraModule>(model: &M, problems: &mut Vec<String>) {
    if is_merged(model) {
        problems.push("the model is merged: call unmerge() first".into());
    }
    refuse_view(model, problems);
}

/// A view for the rows of one batch is there to compute that batch.
pub(crate) fn refuse_view<M: LoraModule>(model: &M, problems: &mut Vec<String>) {
    let mut is_view = false;
    each_layer(model, |_, layer| {
        is_view |= layer
            .adapted()
            .is_some_and(|layer| layer.adapters().rows.is_some());
    });
    if is_view {
        problems
            .push("this is a view for the rows of one batch: use the model that it is of".into());
    }
}

pub(crate) fn refuse_merged_of<M: LoraModule>(model: &M, name: &str, problems: &mut Vec<String>) {
    if merged(model).iter().any(|merged| merged == name) {
        problems.push(format!("`{name}` is merged: call unmerge() first"));
    }
}

/// A tensor that is a field has no room for copies: what trains it cannot be taken out again.
pub(crate) fn refuse_trained_fields<M: LoraModule>(model: &M, problems: &mut Vec<String>) {
    each_layer(model, |path, layer| {
        let is_trained = layer
            .params()
            .iter()
            .any(|param| param.tensor.is_variable());
        if layer.copies().is_none() && is_trained {
            problems.push(format!(
                "`{path}` is a tensor that is a field of the model and is trained: its base value \
                 is not kept, so the model's one adapter stays as it is"
            ));
        }
    });
}

/// `Err` with the problems, if there are any.
pub(crate) fn checked(problems: Vec<String>) -> Result<()> {
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Adapter(problems)),
    }
}

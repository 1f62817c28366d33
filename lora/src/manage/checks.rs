//! The checks before a change to a model's adapters. Each adds to a list of problems, so that one
//! error names all of them.

use super::{is_merged, merged, names};
use crate::adapter::check_name;
use crate::traits::each_layer;
use crate::{Error, LoraModule, Result};

/// Adds a problem if the name of a new adapter is taken, or not a valid adapter name.
pub(crate) fn check_new<M: LoraModule>(model: &M, name: &str, problems: &mut Vec<String>) {
    if let Err(Error::Config(bad)) = check_name(name) {
        problems.extend(bad);
    }
    if names(model).iter().any(|known| known == name) {
        problems.push(format!("there is an adapter `{name}` already"));
    }
}

/// A problem for each of these names that no adapter has.
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

/// Refuses a merged model: its weights hold the adapters as they were when they were merged, and a
/// change would not reach those weights.
pub(crate) fn refuse_merged<M: LoraModule>(model: &M, problems: &mut Vec<String>) {
    if is_merged(model) {
        problems.push("the model is merged: call unmerge() first".into());
    }
    refuse_view(model, problems);
}

/// Refuses a view for the rows of one batch. A view only computes that batch: a change to its
/// adapters would not reach the model.
pub(crate) fn refuse_view<M: LoraModule>(model: &M, problems: &mut Vec<String>) {
    let mut is_view = false;
    each_layer(model, |_, layer| {
        is_view |= layer
            .adapted()
            .is_some_and(|layer| layer.adapters().rows.is_some());
    });
    if is_view {
        problems
            .push("this is a view for the rows of one batch: use the model that made it".into());
    }
}

pub(crate) fn refuse_merged_of<M: LoraModule>(model: &M, name: &str, problems: &mut Vec<String>) {
    if merged(model).iter().any(|merged| merged == name) {
        problems.push(format!("`{name}` is merged: call unmerge() first"));
    }
}

/// Refuses adapters that are to act together and train the same row of a vocabulary: there is one place
/// for the row's values.
pub(crate) fn refuse_overlapping_rows<M: LoraModule>(
    model: &M,
    names: &[&str],
    problems: &mut Vec<String>,
) {
    each_layer(model, |path, layer| {
        let adapters = layer.adapted().map(|layer| layer.adapters());
        let tokens = adapters.into_iter().flat_map(|adapters| adapters.tokens());
        let acting = tokens.filter(|tokens| names.contains(&tokens.adapter()));
        let acting: Vec<_> = acting.filter(|tokens| !tokens.is_shared()).collect();
        for (place, tokens) in acting.iter().enumerate() {
            for earlier in &acting[..place] {
                let mut both = tokens.ids().iter().filter(|id| earlier.ids().contains(id));
                if let Some(row) = both.next() {
                    problems.push(format!(
                        "`{}` and `{}` both train row {row} of `{path}`: only one of them can act",
                        earlier.adapter(),
                        tokens.adapter()
                    ));
                }
            }
        }
    });
}

/// Refuses a model that trains a tensor field. Such a field has no room for copies, so that its
/// base value is lost once an adapter trains it.
pub(crate) fn refuse_trained_fields<M: LoraModule>(model: &M, problems: &mut Vec<String>) {
    each_layer(model, |path, layer| {
        let is_trained = layer
            .params()
            .iter()
            .any(|param| param.tensor.is_variable());
        if layer.copies().is_none() && is_trained {
            problems.push(format!(
                "`{path}`, a tensor that is a field of the model, is trained: its base value is not \
                 kept, so its adapter cannot be switched off, deleted, frozen or joined by another"
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

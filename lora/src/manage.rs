//! Several adapters on one model: which it has, which of them act, are trained, are merged.

use crate::adapter::tie::{self, retie};
use crate::adapter::{Attach, Rows, copies};
use crate::params::{each_layer, each_layer_mut};
use crate::peft::check_name;
use crate::{Calibrated, Error, Layer, LoraConfig, LoraModule, Result, merge};

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
    let tensors = adapters.flat_map(|layer| layer.parts().2.tensors());
    let mut names: Vec<&str> = tensors.map(|(name, ..)| name).collect();
    names.extend(layer.copies().iter().flat_map(|copies| copies.adapters()));
    names
}

/// The names of the active adapters, in the order in which they apply.
pub(crate) fn active<M: LoraModule>(model: &M) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    each_layer(model, |_, layer| {
        let active = layer.adapted().map(|layer| &layer.parts().2.active);
        let active = active.into_iter().flatten().map(String::as_str);
        for name in active.chain(layer.copies().and_then(|copies| copies.current())) {
            if !names.iter().any(|known| known == name) {
                names.push(name.into());
            }
        }
    });
    names
}

/// Makes these adapters act, and only these be trained, without the checks of [`set_active`].
pub(crate) fn activate<M: LoraModule>(model: &mut M, names: &[&str]) -> Result<()> {
    let all = self::names(model);
    let change = |layer: &mut dyn Layer| {
        for name in &all {
            set_layer_trainable(layer, name, names.contains(&name.as_str()))?;
        }
        activate_layer(layer, names)
    };
    try_each_layer(model, |_, layer| change(layer))
}

/// Makes these adapters act at a layer, whoever is trained.
pub(crate) fn activate_layer(layer: &mut dyn Layer, names: &[&str]) -> Result<()> {
    if let Some(adapted) = layer.adapted_mut() {
        adapted.parts_mut().2.active = names.iter().map(|name| name.to_string()).collect();
    }
    let copies = layer.copies();
    let copied = names
        .iter()
        .find(|name| copies.is_some_and(|copies| copies.has(name)));
    copies::switch(layer, copied.copied())
}

fn set_layer_trainable(layer: &mut dyn Layer, name: &str, trainable: bool) -> Result<()> {
    if let Some(adapted) = layer.adapted_mut() {
        adapted.parts_mut().2.set_trainable(name, trainable)?;
    }
    copies::set_copy_trainable(layer, name, trainable)
}

/// Calls `f` with each layer until it fails; then ties are made anew, as tensors may be others.
fn try_each_layer<M: LoraModule>(
    model: &mut M,
    mut f: impl FnMut(&str, &mut dyn Layer) -> Result<()>,
) -> Result<()> {
    let mut result = Ok(());
    each_layer_mut(model, |path, layer| {
        if result.is_ok() {
            result = f(path, layer);
        }
    });
    result.and_then(|()| retie(model))
}

pub(crate) fn set_active<M: LoraModule>(model: &mut M, names: &[&str]) -> Result<()> {
    let mut problems = unknown(model, names);
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            problems.push(format!("`{name}` is named twice"));
        }
    }
    refuse_merged(model, &mut problems);
    // Copies cannot act together: there is one place for them.
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

/// Makes these adapters act, whoever is trained.
pub(crate) fn reactivate<M: LoraModule>(model: &mut M, names: &[String]) -> Result<()> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    try_each_layer(model, |_, layer| activate_layer(layer, &names))
}

/// True if something of the adapter is trained.
pub(crate) fn is_trained<M: LoraModule>(model: &M, name: &str) -> bool {
    let mut trained = false;
    each_layer(model, |_, layer| {
        let adapters = layer.adapted().map(|layer| layer.parts().2).into_iter();
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
        try_each_layer(model, |_, layer| {
            set_layer_trainable(layer, name, trainable)
        })
    })
}

/// Makes a change without what is merged, and merges that again: a copy in a layer is reached only
/// so.
fn while_unmerged<M: LoraModule>(
    model: &mut M,
    change: impl FnOnce(&mut M) -> Result<()>,
) -> Result<()> {
    if !merge::is_merged(model) {
        return change(model);
    }
    let mut changed = model.clone();
    merge::unmerge(&mut changed);
    change(&mut changed)?;
    merge::merge_like(model, &mut changed)?;
    *model = changed;
    Ok(())
}

/// Adds a fresh adapter, which is neither active nor trained.
pub(crate) fn add<M: LoraModule>(
    model: &mut M,
    name: &str,
    config: &LoraConfig,
    for_values: bool,
    calibrated: Option<&Calibrated>,
) -> Result<()> {
    let mut problems = Vec::new();
    check_new(model, name, &mut problems);
    refuse_trained_fields(model, &mut problems);
    refuse_merged(model, &mut problems);
    if config.init.is_lasting() {
        let problem = format!(
            "`{}` quantises the base for good, which would change the other adapters: convert with it",
            config.init
        );
        problems.push(problem);
    }
    if config.recompute.is_some() {
        let problem = "recompute is set when a model is converted, not by a further adapter";
        problems.push(problem.into());
    }
    checked(problems)?;
    let mut attach = Attach::new(name, config, for_values, calibrated)?;
    let mut changed = model.clone();
    try_each_layer(&mut changed, |path, layer| {
        let is_field = layer.copies().is_none();
        // It starts from the base's parameters, not from another adapter's copy of them.
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
                 conversion can train it, not one that is added"
            ));
        }
        if let Some(adapted) = layer.adapted_mut() {
            let active = adapted.parts_mut().2;
            active.active.retain(|active| active != name);
        }
        set_layer_trainable(layer, name, false)
    })?;
    let ties = ties(&changed, name, config, for_values);
    attach.problems.extend(ties);
    attach.finish(Vec::new())?;
    *model = changed;
    Ok(())
}

/// What keeps `ensure_weight_tying` from having its effect, where it is set, and rows from being
/// trained.
pub(crate) fn ties<M: LoraModule>(
    model: &M,
    name: &str,
    config: &LoraConfig,
    for_values: bool,
) -> Vec<String> {
    let mut problems = tie::rows_problems(model, name, config);
    // Values must find their place in any case.
    if config.ensure_weight_tying && !for_values {
        problems.extend(tie::problems(model, name));
    }
    problems
}

pub(crate) fn disabled<M: LoraModule>(model: &M) -> Result<M> {
    let mut problems = Vec::new();
    refuse_trained_fields(model, &mut problems);
    checked(problems)?;
    let mut base = model.clone();
    merge::unmerge(&mut base);
    each_layer_mut(&mut base, |_, layer| {
        if let Some(adapted) = layer.adapted_mut() {
            adapted.parts_mut().2.rows = None;
        }
    });
    activate(&mut base, &[])?;
    Ok(base)
}

pub(crate) fn delete<M: LoraModule>(model: &mut M, name: &str) -> Result<()> {
    let mut problems = unknown(model, &[name]);
    refuse_trained_fields(model, &mut problems);
    refuse_merged_of(model, name, &mut problems);
    checked(problems)?;
    while_unmerged(model, |model| {
        try_each_layer(model, |_, layer| {
            if layer.copies().and_then(|copies| copies.current()) == Some(name) {
                copies::switch(layer, None)?;
            }
            if let Some(copies) = layer.copies_mut() {
                copies.remove(name);
            }
            if let Some(adapted) = layer.adapted_mut() {
                let adapters = adapted.parts_mut().2;
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
    try_each_layer(model, |_, layer| {
        if let Some(copies) = layer.copies_mut() {
            copies.rename(from, to);
        }
        if let Some(adapted) = layer.adapted_mut() {
            adapted.parts_mut().2.rename(from, to);
        }
        Ok(())
    })
}

pub(crate) fn set_scale<M: LoraModule>(model: &mut M, name: &str, scale: f64) -> Result<()> {
    let mut problems = unknown(model, &[name]);
    refuse_merged_of(model, name, &mut problems);
    if !scale.is_finite() {
        problems.push(format!("a scale of {scale}: it must be finite"));
    }
    checked(problems)?;
    try_each_layer(model, |_, layer| {
        if let Some(adapted) = layer.adapted_mut()
            && let Some(adapter) = adapted.parts_mut().2.get_mut(name)
        {
            adapter.scale = scale;
        }
        Ok(())
    })
}

pub(crate) fn for_rows<M: LoraModule>(model: &M, rows: &[Option<&str>]) -> Result<M> {
    let named: Vec<&str> = rows.iter().flatten().copied().collect();
    let mut problems = unknown(model, &named);
    problems.dedup();
    refuse_merged(model, &mut problems);
    refuse_trained_fields(model, &mut problems);
    if rows.is_empty() {
        problems.push("a batch of no rows".into());
    }
    each_layer(model, |path, layer| {
        let copied = layer
            .copies()
            .iter()
            .flat_map(|copies| copies.adapters())
            .find(|adapter| named.contains(adapter));
        if let (None, Some(adapter)) = (layer.adapted(), copied) {
            problems.push(format!(
                "`{adapter}` trains `{path}` in full, a {}: rows of one batch cannot differ there",
                layer.kind()
            ));
        }
    });
    checked(problems)?;
    let mut view = model.clone();
    view.eval();
    let rows = Rows::new(rows);
    try_each_layer(&mut view, |_, layer| match layer.adapted_mut() {
        Some(adapted) => {
            adapted.parts_mut().2.rows = Some(rows.clone());
            Ok(())
        }
        // No row has an adapter that trains it.
        None => copies::switch(layer, None),
    })?;
    Ok(view)
}

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
    if merge::is_merged(model) {
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
            .is_some_and(|layer| layer.parts().2.rows.is_some());
    });
    if is_view {
        problems
            .push("this is a view for the rows of one batch: use the model that it is of".into());
    }
}

fn refuse_merged_of<M: LoraModule>(model: &M, name: &str, problems: &mut Vec<String>) {
    if merge::merged(model).iter().any(|merged| merged == name) {
        problems.push(format!("`{name}` is merged: call unmerge() first"));
    }
}

/// A tensor that is a field has no room for copies: what trains it cannot be taken out again.
fn refuse_trained_fields<M: LoraModule>(model: &M, problems: &mut Vec<String>) {
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

//! Views of a model: without its adapters, and with an adapter for each row of a batch.

use super::active::{activate, change_layers};
use super::checks::{checked, refuse_merged, refuse_trained_fields, unknown};
use super::merge::unmerge;
use crate::adapter::AdaptedMut;
use crate::adapter::{Rows, copies};
use crate::traits::{each_layer, each_layer_mut};
use crate::{LoraModule, Result};

pub(crate) fn disabled<M: LoraModule>(model: &M) -> Result<M> {
    let mut problems = Vec::new();
    refuse_trained_fields(model, &mut problems);
    checked(problems)?;
    let mut base = model.clone();
    unmerge(&mut base);
    each_layer_mut(&mut base, |_, layer| {
        if let Some(adapted) = layer.adapted_mut() {
            adapted.adapters_mut().rows = None;
        }
    });
    activate(&mut base, &[])?;
    Ok(base)
}

pub(crate) fn for_rows<M: LoraModule>(model: &M, rows: &[Option<&str>]) -> Result<M> {
    let named: Vec<&str> = rows.iter().flatten().copied().collect();
    let mut problems = unknown(model, &named);
    problems.dedup();
    refuse_merged(model, &mut problems);
    refuse_trained_fields(model, &mut problems);
    if rows.is_empty() {
        problems.push("the batch has no rows".into());
    }
    each_layer(model, |path, layer| {
        let copied = layer
            .copies()
            .iter()
            .flat_map(|copies| copies.adapters())
            .find(|adapter| named.contains(adapter));
        if let (None, Some(adapter)) = (layer.adapted(), copied) {
            problems.push(format!(
                "`{adapter}` trains `{path}`, a {}, in full: rows of one batch cannot differ there",
                layer.kind()
            ));
        }
    });
    checked(problems)?;
    let mut view = model.clone();
    view.eval();
    let rows = Rows::new(rows);
    change_layers(&mut view, |_, layer| match layer.adapted_mut() {
        Some(adapted) => {
            let adapters = adapted.adapters_mut();
            if !rows.touch(adapters) {
                adapters.active.clear();
            }
            adapters.rows = Some(rows.clone());
            Ok(())
        }
        // The check above leaves no row with an adapter that trains this layer.
        None => copies::switch(layer, None),
    })?;
    Ok(view)
}

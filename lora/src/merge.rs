//! Merging the adapters of a whole model.

use crate::params::{each_layer, each_layer_mut};
use crate::{LoraModule, Result};

/// Merges every layer, or none.
pub(crate) fn merge<M: LoraModule>(model: &mut M) -> Result<()> {
    // Layers merged before this call stay merged if it fails.
    let mut merged = Vec::new();
    let mut failed = None;
    each_layer_mut(model, |path, layer| {
        let Some(layer) = layer.adapted_mut() else {
            return;
        };
        if failed.is_some() || layer.parts().2.is_merged() {
            return;
        }
        match layer.merge_weight() {
            Ok(()) => merged.push(path.to_string()),
            Err(error) => failed = Some(error),
        }
    });
    let Some(error) = failed else {
        return Ok(());
    };
    each_layer_mut(model, |path, layer| {
        if let Some(layer) = layer.adapted_mut()
            && merged.iter().any(|merged| merged == path)
        {
            layer.unmerge_weight();
        }
    });
    Err(error)
}

pub(crate) fn unmerge<M: LoraModule>(model: &mut M) {
    each_layer_mut(model, |_, layer| {
        if let Some(layer) = layer.adapted_mut() {
            layer.unmerge_weight();
        }
    });
}

/// True if any layer is merged.
pub(crate) fn is_merged<M: LoraModule>(model: &M) -> bool {
    let mut merged = false;
    each_layer(model, |_, layer| {
        merged |= layer
            .adapted()
            .is_some_and(|layer| layer.parts().2.is_merged());
    });
    merged
}

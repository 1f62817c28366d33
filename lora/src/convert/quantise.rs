//! Quantises linear layers of a model as it is converted: `LoraConfig::quantize`.

use crate::adapter::quantised;
use crate::config::selection::Selection;
use crate::config::{Kind, Mark};
use crate::manage::base_id;
use crate::traits::{each_layer, try_each_layer_mut};
use crate::{LoraConfig, LoraModule, Result};
use candle_core::quantized::QTensor;
use candle_core::{Tensor, TensorId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What quantising the layers of a model came to.
#[derive(Default)]
pub(super) struct Quantised {
    /// What keeps layers from being quantised.
    pub(super) problems: Vec<String>,
    /// The weights in full precision, by path, if the adapter's initial values are computed from them.
    pub(super) originals: HashMap<String, Tensor>,
}

/// Quantises the layers that the configuration asks for.
///
/// Without a pattern these are all `Linear` layers but the one that gives a language model's scores,
/// those that share the weight of an embedding, and those that are trained in full.
pub(super) fn quantise<L: LoraModule>(
    lora: &mut L,
    config: &LoraConfig,
    selection: &mut Selection<'_>,
    marks: &HashMap<String, Option<Mark>>,
) -> Result<Quantised> {
    let Some(dtype) = config.quantize else {
        return Ok(Quantised::default());
    };
    let mut tables = HashSet::new();
    each_layer(lora, |_, layer| {
        let lookup = layer.adapted().filter(|layer| layer.is_lookup());
        tables.extend(lookup.map(base_id));
    });
    // Layers that share a weight share its blocks.
    let mut shared: HashMap<TensorId, (Arc<QTensor>, Tensor)> = HashMap::new();
    let Quantised {
        mut problems,
        mut originals,
    } = Quantised::default();
    let mut any = false;
    try_each_layer_mut(lora, |path, layer| {
        let Some(mark) = marks.get(path) else {
            return Ok(());
        };
        let kind = layer.kind();
        let trained = selection.choose(path, Some(kind), *mark)?.trainable;
        let named = selection.quantises(path)?;
        let linear = layer.adapted_mut().filter(|_| kind == Kind::Linear);
        let Some(linear) = linear else {
            if named == Some(true) {
                problems.push(format!(
                    "quantize_modules names `{path}`, a {kind}: only a Linear is quantised"
                ));
            }
            return Ok(());
        };
        let is_chosen = named.unwrap_or_else(|| {
            !trained && !selection.is_output(path) && !tables.contains(&base_id(linear))
        });
        any |= is_chosen;
        if !is_chosen || linear.adapters().blocks.is_some() {
            return Ok(());
        }
        let (weight, block) = (linear.weight().clone(), dtype.block_size());
        let inputs = weight.dim(1)?;
        if trained {
            problems.push(format!(
                "quantize_modules names `{path}`, which is trained in full: choose one"
            ));
        } else if !inputs.is_multiple_of(block) {
            problems.push(format!(
                "quantize: {dtype:?} takes {block} inputs at a time, `{path}` has {inputs}: take \
                 another type, or name the other layers in quantize_modules"
            ));
        } else {
            let (blocks, stand_in) = match shared.get(&weight.id()) {
                Some(known) => known.clone(),
                None => {
                    let (blocks, _) = quantised::quantise(&weight, dtype)?;
                    let stand_in = quantised::stand_in(&blocks, weight.dtype())?;
                    shared.insert(weight.id(), (blocks.clone(), stand_in.clone()));
                    (blocks, stand_in)
                }
            };
            quantised::put(linear, blocks, stand_in);
            if config.init.changes_base() {
                originals.insert(path.into(), weight);
            }
        }
        Ok(())
    })?;
    if !any && problems.is_empty() {
        problems.push("quantize: the model has no Linear to quantise".into());
    }
    Ok(Quantised {
        problems,
        originals,
    })
}

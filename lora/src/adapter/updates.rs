//! What the active adapters do to a layer's weight and to its output.

use super::{Adapted, Adapter, Form, Tokens, dora, quantised};
use crate::ops::{self, UpdateParts};
use crate::{Error, Result};
use candle_core::{Tensor, bail};

/// The base weight of a linear layer as a matrix (out, in), from which initial values can be
/// computed. `None` for any other layer.
pub(crate) fn matrix(layer: &dyn Adapted) -> Result<Option<Tensor>> {
    let form = layer.form();
    let is_matrix = matches!(form, Form::Linear | Form::Transposed);
    if !is_matrix || layer.is_lookup() || layer.layer_kind().is_bare() {
        return Ok(None);
    }
    Ok(Some(form.to_matrix(&quantised::unmerged_values(layer)?)?))
}

/// The norm of each output's weights in W + s·B·A: (out). The norms have no graph, as DoRA takes
/// them for constants.
pub(crate) fn norms(layer: &dyn Adapted, adapter: &Adapter) -> Result<Tensor> {
    norms_with(layer, Some(&adapter.detached()))
}

/// The norm of each output's weights in W alone.
pub(crate) fn base_norms(layer: &dyn Adapted) -> Result<Tensor> {
    norms_with(layer, None)
}

fn norms_with(layer: &dyn Adapted, adapter: Option<&Adapter>) -> Result<Tensor> {
    let (form, weight) = (layer.form(), layer.unmerged_weight().detach());
    let wide = dora::precision(weight.dtype());
    if let Some(blocks) = layer.adapters().unmerged_blocks() {
        return quantised::norms(blocks, form, adapter, wide);
    }
    if let (Form::Linear, Some(adapter)) = (form, adapter) {
        let (a, b) = (&adapter.a, &adapter.b);
        if let Some(norms) = ops::weight_norms(&weight, a, b, adapter.scaling())? {
            return Ok(norms);
        }
    }
    let mut sum = form.widened(&weight.to_dtype(wide)?)?;
    if let Some(adapter) = adapter {
        sum = (sum + layer.delta(adapter)?.to_dtype(wide)?)?;
    }
    Ok(dora::norms(&sum, form.output_dim())?)
}

/// DoRA's factor for each output: (out); `None` without a magnitude.
pub(crate) fn gain(layer: &dyn Adapted, adapter: &Adapter) -> Result<Option<Tensor>> {
    let Some(magnitude) = &adapter.magnitude else {
        return Ok(None);
    };
    Ok(Some(dora::gain(magnitude, &norms(layer, adapter)?)?))
}

/// The updates that the forward pass computes: those of active adapters that are not merged.
pub(crate) fn updates(layer: &dyn Adapted) -> candle_core::Result<Vec<UpdateParts>> {
    let adapters = layer.adapters();
    let update = |adapter: &Adapter| {
        let gain = gain(layer, adapter)?;
        Ok(UpdateParts {
            a: adapters.seen(&adapter.a),
            b: adapters.seen(&adapter.b),
            bias: adapter.bias.as_ref().map(|bias| adapters.seen(bias)),
            gain: gain.map(|gain| adapters.seen(&gain)),
            scaling: adapter.scaling(),
            dropout: match adapters.training {
                true => adapter.settings.dropout,
                false => 0.0,
            },
        })
    };
    adapters.to_compute().map(update).collect()
}

/// True if the forward pass computes with another weight than the layer's own, or than the merged one.
pub(crate) fn changes_weight(layer: &dyn Adapted) -> bool {
    let adapters = layer.adapters();
    match &adapters.rows {
        Some(rows) => rows.touch(adapters),
        None => {
            let rows = adapters.tokens_to_compute().next().is_some();
            rows || adapters.to_compute().next().is_some()
        }
    }
}

/// True if the forward pass computes with another bias than the layer's own, or than the merged one.
pub(crate) fn changes_bias(layer: &dyn Adapted) -> bool {
    let adapters = layer.adapters();
    match &adapters.rows {
        Some(rows) => rows.touch(adapters),
        None => adapters.to_compute().any(|adapter| adapter.bias.is_some()),
    }
}

/// The weight with the adapters that the forward pass computes, in the weight's dtype, with its
/// graph.
pub(crate) fn adapted_weight(layer: &dyn Adapted) -> candle_core::Result<Tensor> {
    let weight = layer.weight();
    Ok(match changes_weight(layer) {
        true => adapted(layer)?.0.to_dtype(weight.dtype())?,
        false => layer.adapters().seen(&quantised::values(layer)?),
    })
}

/// The bias with what the forward pass is to compute, with its graph. Only where that changes it.
pub(crate) fn adapted_bias(layer: &dyn Adapted) -> candle_core::Result<Tensor> {
    let bias = layer.bias().map(|bias| layer.adapters().seen(bias));
    match (adapted(layer)?.1, bias) {
        (Some(added), Some(bias)) => {
            let sum = (bias.to_dtype(added.dtype())? + added)?;
            sum.to_dtype(bias.dtype())
        }
        (Some(added), None) => added.to_dtype(layer.weight().dtype()),
        (None, _) => bail!(
            "lora: {}: no adapter changes the bias",
            layer.adapters().path
        ),
    }
}

/// The [`sums`] of what the forward pass is to compute.
fn adapted(layer: &dyn Adapted) -> Result<(Tensor, Option<Tensor>)> {
    let adapters = layer.adapters();
    if adapters.rows.is_some() {
        return Err(Error::layer(
            &adapters.path,
            "the rows of this batch have adapters of their own, and no weight in common that the \
             model's code could read",
        ));
    }
    let weight = adapters.seen(&quantised::values(layer)?);
    // A merged weight has the merged shape already.
    let weight = match adapters.is_merged() {
        true => weight,
        false => layer.form().widened(&weight)?,
    };
    let list = adapters.to_compute();
    let list: Vec<Adapter> = list
        .map(|adapter| adapter.seen(adapters.training))
        .collect();
    let tokens: Vec<Tokens> = adapters.tokens_to_compute().collect();
    sums(layer, &weight, &tokens, &list)
}

/// The weight, which has the merged shape, with these rows and adapters in it, in this order, and what
/// is added to the bias. The sums are in at least f32.
pub(crate) fn sums(
    layer: &dyn Adapted,
    weight: &Tensor,
    tokens: &[Tokens],
    list: &[Adapter],
) -> Result<(Tensor, Option<Tensor>)> {
    let wide = dora::precision(weight.dtype());
    let mut sum = weight.to_dtype(wide)?;
    for tokens in tokens {
        sum = tokens.put_into(&sum)?;
    }
    let mut added: Option<Tensor> = None;
    for adapter in list {
        sum = (sum + layer.delta(adapter)?.to_dtype(wide)?)?;
        if let Some(own) = &adapter.bias {
            let own = (own.to_dtype(wide)? * adapter.scaling())?;
            added = Some(match added {
                Some(added) => (added + own)?,
                None => own,
            });
        }
        if let Some(gain) = gain(layer, adapter)? {
            let gain = gain.to_dtype(wide)?;
            sum = dora::scale_outputs(&sum, &gain, layer.form().output_dim())?;
            added = added.map(|added| added * gain).transpose()?;
        }
    }
    Ok((sum, added))
}

//! What the active adapters do to a layer's weight and to its output.

use super::{Adapted, Adapter, Form, LayerParts, dora, wider};
use crate::Result;
use crate::ops::UpdateParts;
use candle_core::{Tensor, bail};

/// The base weight of a linear layer as a matrix (out, in), from which initial values can be
/// computed. `None` for any other layer.
pub(crate) fn matrix(layer: &dyn Adapted) -> Result<Option<Tensor>> {
    let form = layer.form();
    let is_matrix = matches!(form, Form::Linear | Form::Transposed);
    if !is_matrix || layer.is_lookup() || layer.layer_kind().is_bare() {
        return Ok(None);
    }
    Ok(Some(form.to_matrix(layer.unmerged_weight())?))
}

/// The norm of each output's weights in W + s·B·A: (out). The norms have no graph, as DoRA takes
/// them for constants.
pub(crate) fn norms(layer: &dyn Adapted, adapter: &Adapter) -> Result<Tensor> {
    let (form, weight) = (layer.form(), layer.unmerged_weight().detach());
    let wide = dora::precision(weight.dtype());
    let delta = layer.delta(&adapter.detached())?.to_dtype(wide)?;
    let sum = (form.widened(&weight.to_dtype(wide)?)? + delta)?;
    Ok(dora::norms(&sum, form.output_dim())?)
}

/// The norm of each output's weights in W alone.
pub(crate) fn base_norms(layer: &dyn Adapted) -> Result<Tensor> {
    let (form, weight) = (layer.form(), layer.unmerged_weight().detach());
    let weight = weight.to_dtype(dora::precision(weight.dtype()))?;
    Ok(dora::norms(&form.widened(&weight)?, form.output_dim())?)
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

/// The weight with the adapters that the forward pass computes, in the weight's dtype, with its
/// graph.
pub(crate) fn adapted_weight(layer: &dyn Adapted) -> candle_core::Result<Tensor> {
    let LayerParts {
        weight, adapters, ..
    } = layer.parts();
    let form = layer.form();
    if adapters.rows.is_some() && !adapters.is_empty() {
        bail!(
            "lora: {}: rows of one batch cannot have adapters of their own on a bare weight",
            adapters.path
        );
    }
    let mut sum = adapters.seen(weight);
    for tokens in adapters.tokens_to_compute() {
        sum = tokens.put_into(&sum)?;
    }
    for (place, adapter) in adapters.to_compute().enumerate() {
        let (a, b) = (adapters.seen(&adapter.a), adapters.seen(&adapter.b));
        let delta = form.delta(&a, &b, adapter.scaling())?;
        // Widened once: a merged weight has the merged shape already.
        if place == 0 && !adapters.is_merged() {
            sum = form.widened(&sum)?;
        }
        let wide = wider(sum.dtype(), delta.dtype());
        sum = (sum.to_dtype(wide)? + delta.to_dtype(wide)?)?;
        if let Some(gain) = gain(layer, adapter)? {
            let gain = adapters.seen(&gain).to_dtype(wide)?;
            sum = dora::scale_outputs(&sum, &gain, form.output_dim())?;
        }
    }
    sum.to_dtype(weight.dtype())
}

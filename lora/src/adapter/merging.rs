//! Merges adapters into the weight of one layer, and takes them out again.

use super::places::RECORDED;
use super::{
    Access, Adapted, AdaptedMut, Adapter, Adapters, LayerParts, LayerPartsMut, Merged, Tokens,
};
use super::{quantised, release, updates};
use crate::{Error, Result, ops};
use candle_core::Tensor;
use candle_core::quantized::QMatMul;

/// Takes the merged adapters out of the weight: the very tensor from before comes back. Subtracting
/// the update would leave rounding errors.
pub(crate) fn unmerge(layer: &mut (impl AdaptedMut + ?Sized)) {
    let LayerPartsMut {
        weight,
        bias,
        adapters,
    } = layer.parts_mut(Access::new());
    if let Some(merged) = adapters.merged.take() {
        *weight = merged.weight;
        adapters.blocks = merged.blocks;
        if let (Some(bias), Some(original)) = (bias, merged.bias) {
            *bias = original;
        }
    }
}

/// Merges just these adapters, in this order, whatever is merged now. The merged weight is computed
/// from the unmerged weight, which is kept for [`unmerge`]. Names without an adapter in this layer
/// are left out.
///
/// # Errors
/// If the merged weight is not finite, or an adapter has a bias and the layer has none. The layer
/// then stays as it was.
pub(crate) fn set_merged(layer: &mut dyn Adapted, names: &[String]) -> Result<()> {
    let in_full = layer.adapters().is_merged_in_full();
    set_merged_as(layer, names, in_full)
}

/// As [`set_merged`]. A quantised weight is in full precision while it is merged, if `in_full` says so, in
/// the dtype that the layer computes in; otherwise the sum is quantised again.
pub(crate) fn set_merged_as(
    layer: &mut dyn Adapted,
    names: &[String],
    in_full: bool,
) -> Result<()> {
    let adapters = layer.adapters();
    let names = names.iter().filter(|name| adapters.has(name));
    let names: Vec<String> = names.cloned().collect();
    let is_quantised = adapters.unmerged_blocks().is_some();
    if names == adapters.merged() && (!is_quantised || in_full == adapters.is_merged_in_full()) {
        return Ok(());
    }
    adapters.check_order(&names)?;
    if names.is_empty() {
        unmerge(layer);
        return Ok(());
    }
    // Computed before the layer is changed: an error leaves the layer as it was.
    let (mut merged_weight, merged_bias) = merged_parts(layer, &names)?;
    let (mut merged_blocks, mut error) = (None, None);
    if let Some(blocks) = layer.adapters().unmerged_blocks().filter(|_| !in_full) {
        let (blocks, relative) = quantised::quantise(&merged_weight, blocks.dtype())?;
        merged_weight = quantised::stand_in(&blocks, merged_weight.dtype())?;
        (merged_blocks, error) = (Some(blocks), Some(relative));
    }
    unmerge(layer);
    let LayerPartsMut {
        weight,
        bias,
        adapters,
    } = layer.parts_mut(Access::new());
    let weight = std::mem::replace(weight, merged_weight);
    let bias = match (bias, merged_bias) {
        (Some(bias), Some(merged)) => Some(std::mem::replace(bias, merged)),
        _ => None,
    };
    let blocks = std::mem::replace(&mut adapters.blocks, merged_blocks);
    adapters.merged = Some(Merged {
        names,
        weight,
        bias,
        blocks,
        error,
    });
    Ok(())
}

/// Weight and bias for a base layer, with all merged and all active adapters in them. Further
/// training does not reach these tensors.
pub(crate) fn base_parts(layer: &dyn Adapted) -> Result<(Tensor, Option<Tensor>)> {
    let adapters = layer.adapters();
    if adapters.rows.is_some() {
        let message =
            "a view for the rows of one batch has no base model: use the model that made it";
        return Err(Error::layer(&adapters.path, message));
    }
    let (weight, bias) = merged_parts(layer, &adapters.to_merge())?;
    let bias = bias.as_ref().map(release).transpose()?;
    let weight = release(&weight)?;
    let original = adapters.copies.base_weight();
    let original = original.unwrap_or(layer.unmerged_weight());
    RECORDED.replace(original.id(), &weight);
    Ok((weight, bias))
}

/// As [`base_parts`], for a base layer that holds a quantised weight: the weight is quantised again, to
/// the same type, unless it is merged in full precision. Without an adapter to merge these are the very blocks.
pub(crate) fn quantised_base_parts(layer: &dyn Adapted) -> Result<(QMatMul, Option<Tensor>)> {
    let adapters = layer.adapters();
    let blocks = adapters.unmerged_blocks();
    if let Some(blocks) = blocks.filter(|_| adapters.to_merge().is_empty())
        && adapters.rows.is_none()
    {
        let bias = layer.bias().map(release).transpose()?;
        return Ok((QMatMul::QTensor(blocks.clone()), bias));
    }
    let (weight, bias) = base_parts(layer)?;
    let weight = match blocks.filter(|_| !adapters.is_merged_in_full()) {
        Some(blocks) => QMatMul::QTensor(quantised::quantise(&weight, blocks.dtype())?.0),
        None => QMatMul::Tensor(weight),
    };
    Ok((weight, bias))
}

/// Weight and bias with these adapters in them, in this order: they compute what the forward pass
/// computes with these adapters active. The sums are taken in at least f32 and rounded once to the
/// weight's dtype.
fn merged_parts(layer: &dyn Adapted, names: &[String]) -> Result<(Tensor, Option<Tensor>)> {
    let LayerParts { bias, adapters, .. } = layer.parts();
    let weight = layer.unmerged_weight();
    let merged = adapters.merged.as_ref();
    let bias = merged.and_then(|merged| merged.bias.as_ref()).or(bias);
    if names.is_empty() {
        return Ok((quantised::unmerged_values(layer)?, bias.cloned()));
    }
    let (sum, added) = sums(layer, names)?;
    let merged = sum.to_dtype(weight.dtype())?;
    let bias = match (bias, added) {
        (Some(bias), Some(added)) => {
            let sum = (bias.detach().to_dtype(added.dtype())? + added)?;
            Some(sum.to_dtype(bias.dtype())?)
        }
        (None, Some(_)) => {
            return Err(Error::layer(
                &adapters.path,
                "an adapter has a bias, which cannot be merged into a layer that has none",
            ));
        }
        (bias, None) => bias.cloned(),
    };
    check_finite(adapters, &merged, bias.as_ref())?;
    Ok((merged, bias))
}

/// The merged weight in the precision of the sum, and the sum that is added to the bias.
fn sums(layer: &dyn Adapted, names: &[String]) -> Result<(Tensor, Option<Tensor>)> {
    let adapters = layer.adapters();
    let weight = quantised::exact_values(layer)?.detach();
    let weight = layer.form().widened(&weight)?;
    let tokens = names.iter().filter_map(|name| adapters.tokens_of(name));
    let tokens: Vec<Tokens> = tokens.map(Tokens::detached).collect();
    let list = names.iter().filter_map(|name| adapters.get(name));
    let list: Vec<Adapter> = list.map(Adapter::detached).collect();
    updates::sums(layer, &weight, &tokens, &list)
}

fn check_finite(adapters: &Adapters, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let bias = bias.map(ops::is_finite).transpose()?;
    if ops::is_finite(weight)? && bias != Some(false) {
        return Ok(());
    }
    Err(Error::layer(
        &adapters.path,
        "the merged weight is not finite; the adapter or the base weight holds NaN or infinity, or \
         their sum overflows the weight's dtype",
    ))
}

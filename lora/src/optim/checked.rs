//! What an optimiser checks before it changes a parameter.

use super::adamw::Tracked;
use crate::{Error, Result, manage, ops};
use candle_core::Tensor;
use candle_core::backprop::GradStore;

/// The backward pass of `loss`, if it is finite and reaches each of these parameters.
pub(super) fn backward(
    slots: &[Tracked],
    loss: &Tensor,
    allows_non_finite: bool,
) -> Result<GradStore> {
    if !allows_non_finite {
        manage::check_loss(loss)?;
    }
    let mut grads = loss.backward()?;
    // Where the loss does reach variables, and none of these, the optimiser is out of date.
    if loss.sorted_nodes().iter().any(|node| node.is_variable()) {
        reached(slots, &grads)?;
    }
    let missing = slots.iter().filter(|slot| grads.get(&slot.var).is_none());
    let (routed, unexpected): (Vec<_>, Vec<_>) = missing.partition(|slot| slot.is_routed);
    if !unexpected.is_empty() {
        return Err(Error::NoGradient {
            paths: unexpected.iter().map(|slot| slot.path.clone()).collect(),
            trainable: slots.len(),
        });
    }
    // As LoraModule::backward has it: no token came here.
    for slot in routed {
        grads.insert(&slot.var, slot.var.zeros_like()?);
    }
    Ok(grads)
}

/// Refuses gradients of which none is for one of these parameters.
pub(super) fn reached(slots: &[Tracked], grads: &GradStore) -> Result<()> {
    let mut all = slots.iter();
    if slots.is_empty() || !all.all(|slot| grads.get(&slot.var).is_none()) {
        return Ok(());
    }
    Err(Error::Optimizer(vec![format!(
        "none of the optimiser's {} parameters has a gradient here: they belong to another model, or \
         to this one before an adapter was added, swapped or moved; make a new optimiser",
        slots.len()
    )]))
}

/// Names the first of these parameters whose gradient holds NaN or infinity.
pub(super) fn finite(slots: &[Tracked], grads: &GradStore) -> Result<()> {
    let with_grads = slots
        .iter()
        .filter_map(|slot| Some((slot, grads.get(&slot.var)?)));
    let (slots, grads): (Vec<_>, Vec<_>) = with_grads.unzip();
    match ops::first_not_finite(&grads)? {
        Some(place) => Err(Error::NotFinite(format!(
            "the gradient of `{}`",
            slots[place].path
        ))),
        None => Ok(()),
    }
}

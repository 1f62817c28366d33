//! The backward pass with the check that it reached every trainable parameter.

use crate::traits::trainable;
use crate::{Error, LoraModule, Result, ops};
use candle_core::Tensor;
use candle_core::backprop::GradStore;

/// Refuses a loss that holds NaN or infinity: every gradient would, too.
pub(crate) fn check_loss(loss: &Tensor) -> Result<()> {
    match ops::is_finite(loss)? {
        true => Ok(()),
        false => Err(Error::NotFinite("the loss".into())),
    }
}

pub(crate) fn backward<M: LoraModule>(model: &M, loss: &Tensor) -> Result<GradStore> {
    let mut grads = loss.backward()?;
    let trainable = trainable(model);
    let missing = trainable.iter();
    let missing: Vec<_> = missing
        .filter(|param| grads.get(&param.var).is_none())
        .collect();
    let unexpected = missing.iter().filter(|param| !param.is_routed);
    let paths: Vec<String> = unexpected.map(|param| param.path.clone()).collect();
    if !paths.is_empty() {
        return Err(Error::NoGradient {
            paths,
            trainable: trainable.len(),
        });
    }
    // Candle also computes gradients of plain tensors that meet tracked ones; they are of no use.
    let mut kept = GradStore::default();
    for node in loss.sorted_nodes() {
        if let Some(grad) = grads.remove(node).filter(|_| node.is_variable()) {
            kept.insert(node, grad);
        }
    }
    // No token came here: the slope is zero, and an optimiser's averages go on.
    for param in missing {
        kept.insert(&param.var, param.var.zeros_like()?);
    }
    Ok(kept)
}

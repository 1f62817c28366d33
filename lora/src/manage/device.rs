//! A model of other tensors: on another device, in another dtype, or copied.

use super::merge::{merge_like, unmerge};
use crate::adapter::{Access, AdaptedMut, Parked, quantised};
use crate::init::adapter_dtype;
use crate::manage::tie::retie;
use crate::traits::try_each_layer_mut;
use crate::{Copies, Error, LoraModule, Part, Result, Role, Tokens};
use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor, TensorId, Var};
use std::collections::HashMap;
use std::sync::Arc;

pub(crate) fn to_device<M: LoraModule>(model: &M, device: &Device) -> Result<M> {
    map(model, |tensor, _, _| Ok(tensor.to_device(device)?))
}

/// A copy that no training of the model reaches. Frozen weights of the base stay shared.
pub(crate) fn deep_clone<M: LoraModule>(model: &M) -> Result<M> {
    map(model, |tensor, _, of_adapter| {
        // A frozen tensor of an adapter can lie in the storage of a variable that is trained again.
        Ok(match of_adapter {
            true => tensor.copy()?,
            false => tensor.clone(),
        })
    })
}

pub(crate) fn to_dtype<M: LoraModule>(model: &M, dtype: DType) -> Result<M> {
    if !dtype.is_float() {
        let message =
            format!("a model cannot be converted to {dtype:?}: weights are floating-point");
        return Err(Error::layer("", message));
    }
    map(model, |tensor, role, _| {
        Ok(match role {
            _ if !tensor.dtype().is_float() => tensor.clone(),
            Role::Adapter(_) => tensor.to_dtype(adapter_dtype(dtype))?,
            Role::Base | Role::Buffer => quantised::cast(tensor, dtype)?,
        })
    })
}

/// A copy of the model with every tensor mapped. Trained tensors become new variables, tied tensors
/// stay tied. A merged model is merged again from the mapped parts. `f` is told a tensor's role, and
/// whether an adapter has the tensor or could have a copy of it.
fn map<M: LoraModule>(model: &M, f: impl Fn(&Tensor, Role, bool) -> Result<Tensor>) -> Result<M> {
    let mut mapped = model.clone();
    // A merged layer keeps its original weight aside, where the walk would not meet it.
    unmerge(&mut mapped);
    let mut tied = HashMap::<(TensorId, Role), Tensor>::new();
    let mut blocks = HashMap::<*const QTensor, Arc<QTensor>>::new();
    let mut change = |tensor: &mut Tensor, role: Role, copied: bool| -> Result<()> {
        // By role too, as a base weight and an adapter's part may get different dtypes.
        let key = (tensor.id(), role);
        let new = match tied.get(&key) {
            Some(tensor) => tensor.clone(),
            None => {
                let of_adapter = copied || matches!(role, Role::Adapter(_));
                replace(tensor, |tensor| f(tensor, role, of_adapter))?
            }
        };
        tied.insert(key, new.clone());
        *tensor = new;
        Ok(())
    };
    try_each_layer_mut(&mut mapped, |_, layer| {
        let copies = layer.copies();
        let copied = copies.is_some_and(|copies| copies.adapters().next().is_some());
        for param in layer.params_mut(Access::new()) {
            change(param.tensor, param.role, copied)?;
        }
        for tensor in layer
            .copies_mut(Access::new())
            .into_iter()
            .flat_map(Copies::parked_mut)
        {
            change(tensor, Role::Base, copied)?;
        }
        let Some(layer) = layer.adapted_mut() else {
            return Ok(());
        };
        if let Some(own) = layer.adapters().blocks.clone() {
            let device = layer.weight().device().clone();
            let moved = match blocks.get(&Arc::as_ptr(&own)) {
                Some(moved) => Arc::clone(moved),
                None => quantised::to_device(&own, &device)?,
            };
            blocks.insert(Arc::as_ptr(&own), moved.clone());
            layer.adapters_mut().blocks = Some(moved);
        }
        for adapter in &mut layer.adapters_mut().list {
            // Parked variables belong to the tensors from before.
            adapter.parked = Parked::default();
            for tensor in adapter.started_mut() {
                change(tensor, Role::Adapter(Part::A), true)?;
            }
        }
        Ok(())
    })?;
    // Only now, as all rows are at their new place.
    try_each_layer_mut(&mut mapped, |_, layer| match layer.adapted_mut() {
        Some(layer) => {
            let mut tokens = layer.adapters_mut().tokens.iter_mut();
            tokens.try_for_each(Tokens::follow_rows)
        }
        None => Ok(()),
    })?;
    retie(&mut mapped)?;
    merge_like(model, &mut mapped)?;
    Ok(mapped)
}

/// Maps a tensor. A variable becomes a new variable.
fn replace(tensor: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let new = f(&tensor.detach())?.detach();
    if tensor.is_variable() {
        Ok(Var::from_tensor(&new)?.into_inner())
    } else {
        Ok(new)
    }
}

//! Moving a model to another device or dtype.

use crate::init::adapter_dtype;
use crate::params::each_layer_mut;
use crate::{Error, LoraModule, Result, Role, merge};
use candle_core::{DType, Device, Tensor, TensorId, Var};
use std::collections::HashMap;

pub(crate) fn to_device<M: LoraModule>(model: &M, device: &Device) -> Result<M> {
    map(model, |tensor, _| Ok(tensor.to_device(device)?))
}

pub(crate) fn to_dtype<M: LoraModule>(model: &M, dtype: DType) -> Result<M> {
    if !dtype.is_float() {
        let message =
            format!("a model cannot be converted to {dtype:?}: weights are floating-point");
        return Err(Error::layer("", message));
    }
    map(model, |tensor, role| {
        Ok(match role {
            _ if !tensor.dtype().is_float() => tensor.clone(),
            Role::Adapter(_) => tensor.to_dtype(adapter_dtype(dtype))?,
            Role::Base | Role::Buffer => tensor.to_dtype(dtype)?,
        })
    })
}

/// A copy of the model with every tensor mapped; trained ones are new variables, tied ones stay
/// tied. A merged model is merged again from the mapped parts.
fn map<M: LoraModule>(model: &M, f: impl Fn(&Tensor, Role) -> Result<Tensor>) -> Result<M> {
    let mut mapped = model.clone();
    let merged = merge::is_merged(model);
    merge::unmerge(&mut mapped);
    let mut tied = HashMap::<(TensorId, Role), Tensor>::new();
    let mut failed = None;
    each_layer_mut(&mut mapped, |_, layer| {
        for param in layer.params_mut() {
            let key = (param.tensor.id(), param.role);
            let new = match tied.get(&key) {
                Some(tensor) => Ok(tensor.clone()),
                None => replace(param.tensor, |tensor| f(tensor, param.role)),
            };
            match new {
                Ok(new) => {
                    tied.insert(key, new.clone());
                    *param.tensor = new;
                }
                Err(error) => failed = Some(error),
            }
        }
    });
    match failed {
        Some(error) => return Err(error),
        None if merged => merge::merge(&mut mapped)?,
        None => {}
    }
    Ok(mapped)
}

/// A mapped tensor, a variable if the tensor is one.
fn replace(tensor: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let new = f(&tensor.detach())?.detach();
    if tensor.is_variable() {
        Ok(Var::from_tensor(&new)?.into_inner())
    } else {
        Ok(new)
    }
}

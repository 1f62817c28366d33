//! Carrying weights from one model to another.

use super::is_merged;
use super::tie::retie;
use crate::adapter::{Access, AdaptedMut, copies, quantised, release};
use crate::path::join;
use crate::traits::{each_layer, named, try_each_layer_mut};
use crate::{Error, LoraModule, Result};
use candle_core::quantized::QTensor;
use candle_core::{Tensor, TensorId, Var};
use fancy_regex::Regex;
use std::collections::HashMap;
use std::sync::Arc;

/// Puts the weights of `src` into `dst`, by path. The models may be of different types.
///
/// A trained parameter of `dst` takes the value; a frozen parameter shares the tensor of `src`.
/// Values are cast to the dtype and moved to the device that the parameter of `dst` has. Tied
/// weights stay tied. A base model takes part through [`to_frozen`](crate::LoraModel::to_frozen)
/// and [`to_base`](LoraModule::to_base).
///
/// Parameters whose path matches a pattern of `ignore` are left out, in both models. A pattern is a
/// regular expression for whole segments of a path: `head` matches `head.weight` and
/// `net.head.bias`, not `my_head.bias`.
///
/// # Errors
/// Lists every parameter that only one of the models has, and every shape that differs; `dst` stays
/// as it was. A merged model is refused.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Linear;
/// use lora::{LORA_WEIGHT_NAMES, LoraConfig, LoraModel, LoraModule, transfer_weights};
///
/// let linear = |value: f32| -> lora::Result<Linear> {
///     Ok(Linear::new(Tensor::full(value, (3, 2), &Device::Cpu)?, None))
/// };
/// let src = linear(1.0)?.to_lora(&LoraConfig::new(1))?;
/// let mut dst = linear(0.0)?.to_frozen()?;
/// transfer_weights(&src, &mut dst, LORA_WEIGHT_NAMES)?;
/// assert_eq!(dst.to_base()?.weight().sum_all()?.to_scalar::<f32>()?, 6.0);
/// # Ok::<(), lora::Error>(())
/// ```
pub fn transfer_weights<S: LoraModule, D: LoraModule>(
    src: &S,
    dst: &mut D,
    ignore: &[&str],
) -> Result<()> {
    let ignore = Ignore::new(ignore)?;
    if is_merged(src) || is_merged(dst) {
        let problem =
            "a model is merged, so that its weights already hold its adapter: call unmerge() first";
        return Err(Error::Weights(vec![problem.into()]));
    }

    let (theirs, own) = (blocks_of(src), blocks_of(dst));
    let mut blocks = HashMap::new();
    let mut values = HashMap::new();
    for param in named(src) {
        if !ignore.matches(&param.path)? {
            values.insert(param.path, param.tensor);
        }
    }
    let mut problems = Vec::new();
    let mut changes = HashMap::new();
    let mut tied = HashMap::new();
    for param in named(dst) {
        if ignore.matches(&param.path)? {
            continue;
        }
        match values.remove(&param.path) {
            None => problems.push(format!("missing: {}", param.path)),
            Some(value) if value.dims() != param.tensor.dims() => problems.push(format!(
                "shape of {}: {:?} where the model has {:?}",
                param.path,
                value.dims(),
                param.tensor.dims()
            )),
            Some(value) if value.id() == param.tensor.id() => {}
            Some(value) => {
                match (theirs.get(&param.path), own.get(&param.path)) {
                    (None, None) => {}
                    (Some(theirs), Some(own)) if theirs.dtype() == own.dtype() => {
                        blocks.insert(param.path.clone(), theirs.clone());
                    }
                    (theirs, own) => {
                        let name = |blocks: Option<&Arc<QTensor>>| match blocks {
                            Some(blocks) => format!("quantised to {:?}", blocks.dtype()),
                            None => "in full precision".into(),
                        };
                        let (theirs, own) = (name(theirs), name(own));
                        problems.push(format!(
                            "{}: {theirs} where the model has it {own}",
                            param.path
                        ));
                    }
                }
                let value = like(&value, &param.tensor, &mut tied)?;
                changes.insert(param.path, value);
            }
        }
    }
    let mut unexpected: Vec<_> = values.into_keys().collect();
    unexpected.sort();
    problems.extend(unexpected.iter().map(|path| format!("unexpected: {path}")));
    if !problems.is_empty() {
        return Err(Error::Weights(problems));
    }
    assign(dst, &changes)?;
    try_each_layer_mut(dst, |path, layer| {
        let Some(layer) = layer.adapted_mut() else {
            return Ok(());
        };
        if let Some(blocks) = blocks.get(&join(path, layer.weight_name())) {
            let blocks = quantised::to_device(blocks, layer.weight().device())?;
            layer.adapters_mut().blocks = Some(blocks);
        }
        Ok(())
    })
}

/// The blocks of the quantised weights, by the weight's path.
fn blocks_of<M: LoraModule>(model: &M) -> HashMap<String, Arc<QTensor>> {
    let mut found = HashMap::new();
    each_layer(model, |path, layer| {
        if let Some(layer) = layer.adapted()
            && let Some(blocks) = layer.adapters().blocks()
        {
            found.insert(join(path, layer.weight_name()), blocks.clone());
        }
    });
    found
}

/// The value in the dtype and on the device of this parameter. A tied value gives the same tensor
/// each time, so that `dst` is tied too. It gives one for each dtype and device, as tied weights
/// may be on two devices.
fn like(
    value: &Tensor,
    param: &Tensor,
    tied: &mut HashMap<TensorId, Vec<Tensor>>,
) -> Result<Tensor> {
    let (dtype, device) = (param.dtype(), param.device());
    let made = tied.entry(value.id()).or_default();
    let fits = |made: &&Tensor| made.dtype() == dtype && made.device().same_device(device);
    if let Some(made) = made.iter().find(fits) {
        return Ok(made.clone());
    }
    // A trained parameter is copied: its training must not reach the other model.
    let new = quantised::cast(&release(value)?, dtype)?.to_device(device)?;
    made.push(new.clone());
    Ok(new)
}

/// Gives parameters new values of the same shape, dtype and device, by path.
pub(crate) fn assign<M: LoraModule>(model: &mut M, values: &HashMap<String, Tensor>) -> Result<()> {
    try_each_layer_mut(model, |path, layer| {
        for param in layer.params_mut(Access::new()) {
            if let Some(value) = values.get(&join(path, &param.name)) {
                set(param.tensor, value)?;
            }
        }
        Ok(())
    })?;
    retie(model)
}

/// As [`assign`], for adapters' parameters and for the layers' own parameters as this adapter sees
/// them, active or not. The model must not be merged.
pub(crate) fn assign_to_adapter<M: LoraModule>(
    model: &mut M,
    adapter: &str,
    values: &HashMap<String, Tensor>,
) -> Result<()> {
    let put = |path: &str, name: &str, tensor: &mut Tensor| match values.get(&join(path, name)) {
        Some(value) => set(tensor, value),
        None => Ok(()),
    };
    try_each_layer_mut(model, |path, layer| {
        for param in layer.params_mut(Access::new()) {
            if param.is_adapters() {
                put(path, &param.name, param.tensor)?;
            }
        }
        for (name, tensor) in copies::seen_by_mut(layer, adapter) {
            put(path, &name, tensor)?;
        }
        Ok(())
    })?;
    // Heads see what was put into a frozen tensor of an embedding, too.
    retie(model)
}

fn set(param: &mut Tensor, value: &Tensor) -> Result<()> {
    if param.is_variable() {
        // A copy, as a variable cannot be set to a view of itself.
        Var::from_tensor(param)?.set(&value.copy()?.detach())?;
    } else {
        *param = value.clone();
    }
    Ok(())
}

/// The patterns of parameters to leave out, compiled.
struct Ignore(Vec<(String, Regex)>);

impl Ignore {
    fn new(patterns: &[&str]) -> Result<Self> {
        let mut problems = Vec::new();
        let mut compiled = Vec::new();
        for pattern in patterns {
            match Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})(?:\..*)?$")) {
                Ok(regex) => compiled.push((pattern.to_string(), regex)),
                Err(error) => problems.push(format!("ignore pattern `{pattern}`: {error}")),
            }
        }
        if problems.is_empty() {
            Ok(Self(compiled))
        } else {
            Err(Error::Config(problems))
        }
    }

    fn matches(&self, path: &str) -> Result<bool> {
        for (pattern, regex) in &self.0 {
            let matches = regex.is_match(path).map_err(|error| {
                Error::Config(vec![format!(
                    "ignore pattern `{pattern}` on `{path}`: {error}"
                )])
            })?;
            if matches {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

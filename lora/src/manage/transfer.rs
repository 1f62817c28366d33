//! Carrying weights from one model to another.

use super::is_merged;
use crate::adapter::{copies, release};
use crate::path::join;
use crate::traits::{each_layer_mut, named};
use crate::{Error, LoraModule, Result};
use candle_core::{Tensor, Var};
use fancy_regex::Regex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Patterns for the parameters of adapters, to be ignored by [`transfer_weights`].
pub const LORA_WEIGHT_NAMES: &[&str] = &[
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "token_adapter",
];

/// Puts the weights of `src` into `dst`, by path. Both can be any models.
///
/// Trained parameters of `dst` take the values, frozen ones share the tensors of `src`. Values are
/// cast to the dtype and moved to the device that `dst` has; tied ones stay tied. A base model takes part through
/// [`to_frozen`](crate::LoraModel::to_frozen) and [`to_base`](LoraModule::to_base).
///
/// Parameters whose path `ignore` matches stay out of it on both sides. A pattern is a regular
/// expression for whole segments of a path: `head` matches `head.weight` and `net.head.bias`, not
/// `my_head.bias`.
///
/// # Errors
/// Every parameter that only one of the models has, and every shape that differs; `dst` is then as
/// it was. A merged model is refused.
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
            "a model is merged, its weights already hold its adapter; call unmerge() first";
        return Err(Error::Weights(vec![problem.into()]));
    }

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
                let (dtype, device) = (param.tensor.dtype(), param.tensor.device());
                let value = match tied.entry((value.id(), dtype)) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    // A trained parameter is copied: its training must not reach `dst`.
                    Entry::Vacant(entry) => {
                        entry.insert(release(&value)?.to_dtype(dtype)?.to_device(device)?)
                    }
                };
                let value = value.clone();
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
    assign(dst, &changes)
}

/// Gives parameters new values of the same shape, dtype and device, by path.
pub(crate) fn assign<M: LoraModule>(model: &mut M, values: &HashMap<String, Tensor>) -> Result<()> {
    let mut result = Ok(());
    each_layer_mut(model, |path, layer| {
        for param in layer.params_mut() {
            let Some(value) = values.get(&join(path, &param.name)) else {
                continue;
            };
            if let Err(error) = set(param.tensor, value) {
                result = Err(error);
            }
        }
    });
    result
}

/// As [`assign`], for an adapter's parameters and the base's as that adapter sees them, active or
/// not. The model must not be merged.
pub(crate) fn assign_to_adapter<M: LoraModule>(
    model: &mut M,
    adapter: &str,
    values: &HashMap<String, Tensor>,
) -> Result<()> {
    let mut result = Ok(());
    each_layer_mut(model, |path, layer| {
        let mut put = |name: &str, tensor: &mut Tensor| {
            if let Some(value) = values.get(&join(path, name))
                && let Err(error) = set(tensor, value)
            {
                result = Err(error);
            }
        };
        for param in layer.params_mut() {
            if param.is_adapters() {
                put(&param.name, param.tensor);
            }
        }
        for (name, tensor) in copies::seen_by_mut(layer, adapter) {
            put(&name, tensor);
        }
    });
    result
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

//! The tensors of `adapter_model.safetensors`.

use super::describe::{Description, Entry};
use super::{PREFIX, WEIGHTS_FILE};
use crate::error::shorten;
use crate::path::join;
use crate::{Error, Result, Settings, ops};
use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use indexmap::IndexMap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;

/// The tensors of a file by key, without the prefix.
pub(super) struct Weights<'a> {
    tensors: IndexMap<String, TensorView<'a>>,
}

impl<'a> Weights<'a> {
    pub fn parse(dir: &Path, bytes: &'a [u8]) -> Result<Self> {
        let path = dir.join(WEIGHTS_FILE);
        let file = SafeTensors::deserialize(bytes);
        let file =
            file.map_err(|error| Error::file(&path, format!("is no valid file: {error}")))?;
        let mut sorted = file.tensors();
        sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut tensors = IndexMap::new();
        let mut problems = Vec::new();
        for (key, view) in sorted {
            let key = key.strip_prefix(PREFIX).unwrap_or(&key);
            if tensors.insert(key.to_string(), view).is_some() {
                problems.push(format!(
                    "holds `{}` with and without its prefix",
                    shorten(key)
                ));
            }
        }
        if problems.is_empty() {
            Ok(Self { tensors })
        } else {
            Err(Error::File { path, problems })
        }
    }

    /// The path of the first layer that has a tensor of this name.
    pub fn path_of(&self, name: &str) -> Option<String> {
        let mut keys = self.tensors.keys();
        keys.find_map(|key| Some(key.strip_suffix(name)?.to_string()))
    }

    /// Checks that a matrix A of the planned rank is there for each planned layer, so that nothing
    /// is made in a size that only the configuration claims.
    pub fn check_ranks(
        &self,
        model: &Description,
        planned: &IndexMap<String, Settings>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        for (path, place, settings, rows) in model.places(planned) {
            let keys = ["lora_A.weight", "lora_embedding_A"];
            let a = keys
                .iter()
                .find_map(|key| self.tensors.get(&join(&place, key)));
            let rank = settings.rank;
            match a.map(|a| a.shape()) {
                None => problems.push(format!(
                    "there is no `{}` for `{path}`, a target of rank {rank}",
                    join(&place, "lora_A")
                )),
                Some(shape) if shape.first() != Some(&rows) || shape.contains(&0) => {
                    problems.push(format!(
                        "A of `{path}` has shape {shape:?}, its rank is {rank} in the configuration"
                    ))
                }
                Some(_) => {}
            }
        }
        problems
    }

    /// The values for these entries, in their dtype and on their device, in order; and all that is
    /// wrong.
    pub fn values(
        mut self,
        entries: &[Entry],
        model: &Description,
        problems: &mut Vec<String>,
    ) -> Vec<Tensor> {
        let mut values = Vec::new();
        for entry in entries {
            match self.tensors.shift_remove(&entry.key) {
                None => problems.push(format!("`{}` is missing", entry.key)),
                Some(view) => match value(&view, entry) {
                    Ok(value) => values.push(value),
                    Err(problem) => problems.push(format!("`{}` {problem}", entry.key)),
                },
            }
        }
        for (key, view) in &self.tensors {
            if let Some(problem) = unexpected(key, view, model) {
                problems.push(format!("`{}` {problem}", shorten(key)));
            }
        }
        values
    }
}

/// A tensor of the file as the model's parameter.
fn value(view: &TensorView<'_>, entry: &Entry) -> Result<Tensor, String> {
    check_dtype(view)?;
    let target = &entry.tensor;
    if view.shape() != target.dims() {
        return Err(format!(
            "has shape {:?}, the model's {:?}",
            view.shape(),
            target.dims()
        ));
    }
    let load = || -> candle_core::Result<Tensor> {
        view.load(&Device::Cpu)?
            .to_dtype(target.dtype())?
            .to_device(target.device())
    };
    let value = load().map_err(|error| format!("cannot be read: {error}"))?;
    match ops::is_finite(&value) {
        Ok(true) => Ok(value),
        Ok(false) => Err(format!(
            "holds values that are not finite in {:?}",
            target.dtype()
        )),
        Err(error) => Err(format!("cannot be checked: {error}")),
    }
}

fn check_dtype(view: &TensorView<'_>) -> Result<(), String> {
    match view.dtype() {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
        dtype => Err(format!("is {dtype:?}: it must be F64, F32, F16 or BF16")),
    }
}

/// What is wrong with a tensor that the model has no place for. PEFT writes a few that carry
/// nothing.
fn unexpected(key: &str, view: &TensorView<'_>, model: &Description) -> Option<String> {
    // With bias="all" PEFT saves the biases of both copies of a fully trained module.
    if let Some(module) = model.saved_module(key) {
        let rest = key[module.len()..].trim_start_matches('.');
        let copy = ["modules_to_save.", "original_module."]
            .iter()
            .any(|copy| rest.starts_with(copy) && rest.ends_with("bias"));
        if copy || rest.rsplit('.').next() == Some("num_batches_tracked") {
            return None;
        }
    }
    // An adapted embedding of a language model comes with the base weight.
    if let Some(path) = key.strip_suffix(".base_layer.weight")
        && let Some(site) = model.site(path)
        && site.adapter.is_some()
        && let Some(base) = site.own.first()
    {
        return match equals(view, &base.param.tensor) {
            true => None,
            false => Some(
                "differs from the model's own weight: the adapter was saved with another base \
                 model, or with changed embeddings, and a file never replaces base weights"
                    .into(),
            ),
        };
    }
    Some("is unexpected: the model has no place for it".into())
}

/// The file's tensor has exactly these values, once it has the same dtype.
fn equals(view: &TensorView<'_>, tensor: &Tensor) -> bool {
    if check_dtype(view).is_err() || view.shape() != tensor.dims() {
        return false;
    }
    let compare = || -> candle_core::Result<bool> {
        let file = view
            .load(&Device::Cpu)?
            .to_dtype(tensor.dtype())?
            .flatten_all()?;
        let mine = tensor.detach().to_device(&Device::Cpu)?.flatten_all()?;
        let same = file
            .eq(&mine)?
            .to_dtype(candle_core::DType::U32)?
            .sum_all()?;
        Ok(same.to_scalar::<u32>()? as usize == mine.elem_count())
    };
    compare().unwrap_or(false)
}

/// The bytes of a file with these entries.
pub(super) fn to_bytes(entries: &[Entry], batch_norms: &[String]) -> Result<Vec<u8>, Vec<String>> {
    let mut problems = Vec::new();
    let mut tensors = Vec::new();
    let mut add = |key: &str, tensor: Tensor| tensors.push((format!("{PREFIX}{key}"), tensor));
    for Entry { key, tensor, .. } in entries {
        let copy = || tensor.detach().to_device(&Device::Cpu)?.contiguous();
        match (ops::is_finite(tensor), copy()) {
            (Ok(true), Ok(tensor)) => add(key, tensor),
            (Ok(false), _) => problems.push(format!("`{key}` holds values that are not finite")),
            (Err(error), _) => problems.push(format!("`{key}`: {error}")),
            (_, Err(error)) => problems.push(format!("`{key}`: {error}")),
        }
    }
    for path in batch_norms {
        // PEFT asks for every key of a fully trained module, this counter included.
        match Tensor::new(0i64, &Device::Cpu) {
            Ok(zero) => add(&format!("{path}.num_batches_tracked"), zero),
            Err(error) => problems.push(error.to_string()),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(tensors, Some(metadata));
    bytes.map_err(|error| vec![error.to_string()])
}

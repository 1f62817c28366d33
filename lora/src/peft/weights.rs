//! The tensors of `adapter_model.safetensors`.

use super::describe::{Description, Entry};
use super::rounding::same_values;
use super::tensors::Tensors;
use super::{AdapterDir, keys};
use crate::adapter::Part;
use crate::error::shorten;
use crate::{Result, Settings, ops};
use candle_core::{Device, Tensor};
use indexmap::IndexMap;
use safetensors::tensor::{Dtype, TensorInfo};
use std::collections::{HashMap, HashSet};

/// The tensors of a file, as values for a model.
pub(super) struct Weights {
    pub tensors: Tensors,
}

impl Weights {
    /// Opens the file of a directory; tensors are read when they are asked for.
    pub fn open(dir: &AdapterDir) -> Result<Self> {
        let tensors = Tensors::open(dir)?;
        Ok(Self { tensors })
    }

    /// Whether the file holds for a head what it holds for an embedding, in shapes: the update
    /// transposed, or the weight. PEFT ties only modules whose names it knows, and elsewhere warns:
    /// the file then holds nothing for the head, whatever its configuration says.
    pub fn holds_tie(&self) -> bool {
        let shape = |key: &str| self.tensors.info(key).map(|info| info.shape.clone());
        let (mut embeddings, mut others) = (HashSet::new(), HashSet::new());
        let mut full = HashSet::new();
        for key in self.tensors.keys().keys() {
            let Some(parsed) = keys::parse(key) else {
                let weight = shape(key).unwrap_or_default();
                if weight.len() == 2 && !full.insert(weight) {
                    return true;
                }
                continue;
            };
            if parsed.part != Part::A {
                continue;
            }
            let b = shape(&keys::part(parsed.path, Part::B, parsed.of_lookup));
            let (Some(a), Some(b)) = (shape(key), b) else {
                continue;
            };
            let turned = |shape: Vec<usize>| shape.into_iter().rev().collect();
            match parsed.of_lookup {
                true => embeddings.insert((turned(b), turned(a))),
                false => others.insert((a, b)),
            };
        }
        !embeddings.is_disjoint(&others)
    }

    /// Checks that the file has a matrix A of the planned rank for each planned layer, so that no
    /// adapter is made in a size that only the configuration claims.
    pub fn check_ranks(
        &self,
        model: &Description,
        planned: &IndexMap<String, Settings>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        for (path, place, settings, rows) in model.places(planned) {
            let names = [false, true].map(|of_lookup| keys::part(&place, Part::A, of_lookup));
            let a = names.iter().find_map(|key| self.tensors.info(key));
            let rank = settings.rank;
            match a.map(|a| &a.shape) {
                None => problems.push(format!(
                    "there is no `{}` for `{path}`, a target of rank {rank}",
                    names[0]
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

    /// The values for these entries, in order, each in its entry's dtype and on its device. Adds
    /// everything that is wrong to the problems.
    pub fn values(
        &self,
        entries: &[Entry],
        model: &Description,
        problems: &mut Vec<String>,
    ) -> Vec<Tensor> {
        let mut values = Vec::new();
        let mut taken = HashSet::new();
        for entry in entries {
            let older = keys::without_wrapper_of_bias(&entry.key);
            let names = [Some(&entry.key), older.as_ref()].into_iter().flatten();
            let found = names
                .filter_map(|name| self.tensors.keys().get_key_value(name))
                .next();
            match found {
                None => problems.push(format!("`{}` is missing", entry.key)),
                Some((plain, key)) => {
                    taken.insert(plain.as_str());
                    match self.value(key, entry) {
                        Ok(value) => values.push(value),
                        Err(problem) => problems.push(format!("`{}` {problem}", entry.key)),
                    }
                }
            }
        }
        let rest = self.tensors.keys().iter();
        let rest = rest.filter(|(bare, _)| !taken.contains(bare.as_str()));
        let own = model.own();
        for (bare, key) in rest {
            if let Some(problem) = self.unexpected(bare, key, model, &own) {
                problems.push(format!("`{}` {problem}", shorten(bare)));
            }
        }
        values
    }

    /// A tensor of the file as the model's parameter.
    fn value(&self, key: &str, entry: &Entry) -> Result<Tensor, String> {
        let target = &entry.tensor;
        let info = &self.tensors.tensors()[key];
        check_dtype(info)?;
        if info.shape != target.dims() {
            return Err(format!(
                "has shape {:?}, the model's {:?}",
                info.shape,
                target.dims()
            ));
        }
        let load = || -> Result<Tensor> {
            let tensor = self.tensors.tensor(key)?.to_dtype(target.dtype())?;
            Ok(tensor.to_device(target.device())?)
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

    /// The problem of a tensor that the model has no place for; `None` for the few that PEFT writes
    /// and that change nothing.
    fn unexpected(
        &self,
        bare: &str,
        key: &str,
        model: &Description,
        own: &HashMap<String, &Tensor>,
    ) -> Option<String> {
        if let Some(module) = model.saved_module(bare) {
            let rest = bare[module.len()..].trim_start_matches('.');
            if keys::is_of_copy(rest) || keys::is_counter(rest) {
                return None;
            }
        }
        // A model's whole state, or the embeddings of a language model, come with the base's own.
        let Some(own) = own.get(&keys::without_wrappers(bare)) else {
            return Some("is unexpected: the model has no place for it".into());
        };
        match self.equals(key, own) {
            true => None,
            false => Some(
                "is unexpected: it differs from the model's own, and no setting says that the                  adapter trains it"
                    .into(),
            ),
        }
    }

    /// True if the file's tensor has the other's values, but for rounding.
    pub fn equals(&self, key: &str, tensor: &Tensor) -> bool {
        let info = &self.tensors.tensors()[key];
        if check_dtype(info).is_err() || info.shape != tensor.dims() {
            return false;
        }
        let compare = || -> Result<bool> {
            let mine = tensor.detach().to_device(&Device::Cpu)?;
            same_values(&self.tensors.tensor(key)?, &mine)
        };
        compare().unwrap_or(false)
    }
}

pub(super) fn check_dtype(info: &TensorInfo) -> Result<(), String> {
    match info.dtype {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
        dtype => Err(format!("is {dtype:?}: it must be F64, F32, F16 or BF16")),
    }
}

/// The bytes of a file with these entries.
pub(super) fn to_bytes(entries: &[Entry], batch_norms: &[String]) -> Result<Vec<u8>, Vec<String>> {
    let mut problems = Vec::new();
    let mut tensors = Vec::new();
    let mut add = |key: &str, tensor: Tensor| tensors.push((keys::with_prefix(key), tensor));
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
            Ok(zero) => add(&format!("{path}.{}", keys::COUNTER), zero),
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

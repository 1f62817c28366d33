//! The tensors of `adapter_model.safetensors`.

use super::describe::{Description, Entry};
use super::{files, keys, keys::without_prefix};
use crate::adapter::Part;
use crate::error::shorten;
use crate::file::TensorFile;
use crate::{Error, Result, Settings, ops};
use candle_core::{DType, Device, Tensor};
use indexmap::IndexMap;
use safetensors::tensor::{Dtype, TensorInfo};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// PyTorch's counter of a batch norm, which computes nothing.
const COUNTER: &str = "num_batches_tracked";

/// The tensors of a file by key, without the prefix.
pub(super) struct Weights {
    file: TensorFile,
    /// The key in the file, by key without the prefix.
    keys: IndexMap<String, String>,
}

impl Weights {
    /// Opens the file of a directory; tensors are read when they are asked for.
    pub fn open(dir: &Path) -> Result<Self> {
        let file = TensorFile::open(&files::weights_path(dir)?)?;
        let mut sorted: Vec<&String> = file.tensors().keys().collect();
        sorted.sort();
        let mut keys = IndexMap::new();
        let mut problems = Vec::new();
        for key in sorted {
            let bare = without_prefix(key);
            if keys.insert(bare.to_string(), key.clone()).is_some() {
                problems.push(format!(
                    "holds `{}` with and without its prefix",
                    shorten(bare)
                ));
            }
        }
        match problems.is_empty() {
            true => Ok(Self { file, keys }),
            false => Err(Error::File {
                path: file.path().into(),
                problems,
            }),
        }
    }

    fn info(&self, key: &str) -> Option<&TensorInfo> {
        self.file.tensors().get(self.keys.get(key)?)
    }

    /// The path of the first layer that has trained rows.
    pub fn path_of_rows(&self) -> Option<String> {
        let mut parts = self.keys.keys().filter_map(|key| keys::parse(key));
        let rows = parts.find(|(_, part, _)| *part == Part::Tokens);
        rows.map(|(path, ..)| path.to_string())
    }

    /// Whether the file holds for a head what it holds for an embedding, in shapes: the update
    /// transposed, or the weight. PEFT ties only modules whose names it knows, and elsewhere warns:
    /// the file then holds nothing for the head, whatever its configuration says.
    pub fn holds_tie(&self) -> bool {
        let shape = |key: &str| self.info(key).map(|info| info.shape.clone());
        let (mut embeddings, mut others) = (HashSet::new(), HashSet::new());
        let mut full = HashSet::new();
        for key in self.keys.keys() {
            match keys::parse(key) {
                Some((path, Part::A, of_lookup)) => {
                    let b = shape(&keys::part(path, Part::B, of_lookup));
                    let (Some(a), Some(b)) = (shape(key), b) else {
                        continue;
                    };
                    let turned = |shape: Vec<usize>| shape.into_iter().rev().collect();
                    match of_lookup {
                        true => embeddings.insert((turned(b), turned(a))),
                        false => others.insert((a, b)),
                    };
                }
                Some(_) => {}
                None => {
                    let weight = shape(key).unwrap_or_default();
                    if weight.len() == 2 && !full.insert(weight) {
                        return true;
                    }
                }
            }
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
            let a = names.iter().find_map(|key| self.info(key));
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
            taken.insert(entry.key.as_str());
            match self.keys.get(&entry.key) {
                None => problems.push(format!("`{}` is missing", entry.key)),
                Some(key) => match self.value(key, entry) {
                    Ok(value) => values.push(value),
                    Err(problem) => problems.push(format!("`{}` {problem}", entry.key)),
                },
            }
        }
        let rest = self
            .keys
            .iter()
            .filter(|(bare, _)| !taken.contains(bare.as_str()));
        for (bare, key) in rest {
            if let Some(problem) = self.unexpected(bare, key, model) {
                problems.push(format!("`{}` {problem}", shorten(bare)));
            }
        }
        values
    }

    /// A tensor of the file as the model's parameter.
    fn value(&self, key: &str, entry: &Entry) -> Result<Tensor, String> {
        let target = &entry.tensor;
        let info = &self.file.tensors()[key];
        check_dtype(info)?;
        if info.shape != target.dims() {
            return Err(format!(
                "has shape {:?}, the model's {:?}",
                info.shape,
                target.dims()
            ));
        }
        let load = || -> Result<Tensor> {
            let tensor = self.file.tensor(key)?.to_dtype(target.dtype())?;
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
    fn unexpected(&self, bare: &str, key: &str, model: &Description) -> Option<String> {
        if let Some(module) = model.saved_module(bare) {
            let rest = bare[module.len()..].trim_start_matches('.');
            let is_counter = rest.rsplit('.').next() == Some(COUNTER);
            if keys::is_bias_of_copy(rest) || is_counter {
                return None;
            }
        }
        // An adapted embedding of a language model comes with the base weight.
        if let Some(path) = keys::path_of_base_weight(bare)
            && let Some(site) = model.site(path)
            && site.adapter.is_some()
            && let Some(base) = site.own.first()
        {
            return match self.equals(key, &base.param.tensor) {
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

    /// True if the file's tensor, in the other's dtype, has exactly the same values.
    fn equals(&self, key: &str, tensor: &Tensor) -> bool {
        let info = &self.file.tensors()[key];
        if check_dtype(info).is_err() || info.shape != tensor.dims() {
            return false;
        }
        let compare = || -> Result<bool> {
            let file = self.file.tensor(key)?;
            let file = file.to_dtype(tensor.dtype())?.flatten_all()?;
            let mine = tensor.detach().to_device(&Device::Cpu)?.flatten_all()?;
            let same = file.eq(&mine)?.to_dtype(DType::U32)?.sum_all()?;
            Ok(same.to_scalar::<u32>()? as usize == mine.elem_count())
        };
        compare().unwrap_or(false)
    }
}

fn check_dtype(info: &TensorInfo) -> Result<(), String> {
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
            Ok(zero) => add(&format!("{path}.{COUNTER}"), zero),
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

//! An adapter as a list of layers, which all formats have in common.

use super::Found;
use crate::config::selection::{Overrides, Selection};
use crate::error::shorten;
use crate::file::{self, TensorFile};
use crate::peft::save::most_common;
use crate::peft::tensors::Tensors;
use crate::peft::weights::Weights;
use crate::peft::{AdapterConfig, AdapterDir, files, keys, replace};
use crate::{Error, Part, Result, Targets, TrainBias, ops};
use candle_core::{DType, Tensor};
use indexmap::IndexMap;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// A layer with its matrices, as PEFT has them: A (r, in, ..), B (out, r, ..).
pub(super) struct Layer {
    pub path: String,
    pub of_lookup: bool,
    pub a: Tensor,
    pub b: Tensor,
    /// The scaling is this over the rank.
    pub alpha: f64,
    pub magnitude: Option<Tensor>,
}

impl Layer {
    pub fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or(0)
    }

    pub fn scaling(&self) -> f64 {
        self.alpha / self.rank().max(1) as f64
    }

    /// The problem of matrices that do not fit each other, or are not finite.
    pub fn check(&self) -> Result<Option<String>> {
        let (a, b) = (self.a.dims(), self.b.dims());
        let fits = match (a, b) {
            ([rank, ..], [_, same, ..]) => rank == same && *rank > 0 && a.len() == b.len(),
            _ => false,
        };
        let path = shorten(&self.path);
        if !fits || a.contains(&0) || b.contains(&0) {
            let problem = format!("`{path}` has A of shape {a:?} and B of {b:?}, which do not fit");
            return Ok(Some(problem));
        }
        if !self.alpha.is_finite() {
            return Ok(Some(format!("`{path}` has an alpha that is not finite")));
        }
        for tensor in [Some(&self.a), Some(&self.b), self.magnitude.as_ref()]
            .into_iter()
            .flatten()
        {
            if !tensor.dtype().is_float() {
                let dtype = tensor.dtype();
                return Ok(Some(format!("`{path}` is {dtype:?}: it must hold floats")));
            }
            if !ops::is_finite(tensor)? {
                return Ok(Some(format!("`{path}` holds values that are not finite")));
            }
        }
        Ok(None)
    }
}

/// Writes the layers as a directory of PEFT's.
pub(super) fn write(dir: &Path, layers: &[Layer]) -> Result<()> {
    let mut problems = Vec::new();
    let mut tensors = Vec::new();
    for layer in layers {
        problems.extend(layer.check()?);
        let mut add = |part, tensor: &Tensor| {
            let key = keys::with_prefix(&keys::part(&layer.path, part, layer.of_lookup));
            tensors.push((key, tensor.contiguous()));
        };
        add(Part::A, &layer.a);
        add(Part::B, &layer.b);
        if let Some(magnitude) = &layer.magnitude {
            add(Part::Magnitude, magnitude);
        }
    }
    let with_magnitude = layers.iter().filter(|layer| layer.magnitude.is_some());
    let with_magnitude = with_magnitude.count();
    if with_magnitude > 0 && with_magnitude < layers.len() {
        problems.push("some layers have a magnitude (DoRA), others do not".into());
    }
    if layers.is_empty() {
        problems.push("holds no layer".into());
    }
    if !problems.is_empty() {
        return Err(Error::File {
            path: dir.into(),
            problems,
        });
    }
    let tensors = tensors.into_iter().map(|(key, tensor)| Ok((key, tensor?)));
    let bytes = serialized(dir, tensors.collect::<Result<Vec<_>>>()?)?;
    replace::write(dir, &config(layers).to_json()?, &bytes)
}

fn config(layers: &[Layer]) -> AdapterConfig {
    let mut config = AdapterConfig::new();
    config.r = most_common(layers.iter().map(Layer::rank)).unwrap_or(1);
    config.lora_alpha = most_common(layers.iter().map(|layer| layer.alpha)).unwrap_or(1.0);
    config.use_dora = layers.iter().any(|layer| layer.magnitude.is_some());
    let paths = layers.iter().map(|layer| layer.path.clone());
    config.target_modules = Some(Targets::Names(paths.collect()));
    for layer in layers {
        let key = || format!("^{}$", fancy_regex::escape(&layer.path));
        if layer.rank() != config.r {
            config.rank_pattern.insert(key(), layer.rank());
        }
        if layer.alpha != config.lora_alpha {
            config.alpha_pattern.insert(key(), layer.alpha);
        }
    }
    config.rank_pattern.sort_keys();
    config.alpha_pattern.sort_keys();
    config
}

/// The layers of a directory, or what no other format has a place for.
pub(super) fn read(dir: &AdapterDir) -> Result<Vec<Layer>> {
    let (file, Weights { tensors }) = files::open_pair(dir)?;
    let failed = |problems| Error::File {
        path: dir.path().into(),
        problems,
    };
    let mut problems = unsupported(&file);
    let config = match file.lora_config() {
        Ok(config) => config,
        Err(more) => {
            problems.extend(more);
            return Err(failed(problems));
        }
    };
    let mut selection = Selection::new(&config)?;
    let mut layers = Vec::new();
    let parts = parts(&tensors).unwrap_or_else(|more| {
        problems.extend(more);
        Parts::new()
    });
    for (path, parts) in parts {
        let (Some(a), Some(b)) = (parts.get(&Part::A), parts.get(&Part::B)) else {
            problems.push(format!("`{}` lacks A or B", shorten(&path)));
            continue;
        };
        let settings = selection.settings(&path, Overrides::default())?;
        let magnitude = parts.get(&Part::Magnitude);
        let layer = Layer {
            of_lookup: a.1,
            a: tensors.tensor(&a.0)?,
            b: tensors.tensor(&b.0)?,
            alpha: settings.scaling * settings.rank as f64,
            magnitude: magnitude.map(|(key, _)| tensors.tensor(key)).transpose()?,
            path,
        };
        if layer.rank() != settings.rank {
            problems.push(format!(
                "A of `{}` has shape {:?}, its rank is {} in the configuration",
                shorten(&layer.path),
                layer.a.dims(),
                settings.rank
            ));
        }
        if layer.magnitude.is_some() != file.use_dora {
            problems.push(format!(
                "`use_dora` and the magnitudes of `{}` disagree",
                shorten(&layer.path)
            ));
        }
        problems.extend(layer.check()?);
        layers.push(layer);
    }
    match problems.is_empty() && !layers.is_empty() {
        true => Ok(layers),
        false if problems.is_empty() => Err(failed(vec!["holds no layer".into()])),
        false => Err(failed(problems)),
    }
}

/// The parts of each layer: the key in the file, and whether it has an embedding's name.
type Parts = IndexMap<String, HashMap<Part, (String, bool)>>;

fn parts(tensors: &Tensors) -> Found<Parts> {
    let (mut parts, mut problems) = (Parts::new(), Vec::new());
    for (plain, key) in tensors.keys() {
        match keys::parse(plain) {
            Some(parsed) if matches!(parsed.part, Part::A | Part::B | Part::Magnitude) => {
                let of_layer = parts.entry(parsed.path.into()).or_default();
                of_layer.insert(parsed.part, (key.clone(), parsed.of_lookup));
            }
            _ => problems.push(format!(
                "`{}` is no matrix of a layer: the format has no place for it",
                shorten(plain)
            )),
        }
    }
    match problems.is_empty() {
        true => Ok(parts),
        false => Err(problems),
    }
}

/// Settings that only PEFT's format holds.
fn unsupported(file: &AdapterConfig) -> Vec<String> {
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let on = [
        ("lora_bias", file.lora_bias),
        ("bias", file.bias != TrainBias::None),
        ("modules_to_save", some(&file.modules_to_save)),
        ("target_parameters", some(&file.target_parameters)),
        (
            "trainable_token_indices",
            file.trainable_token_indices.is_some(),
        ),
        ("ensure_weight_tying", file.ensure_weight_tying),
        ("init_lora_weights", file.init_lora_weights.changes_base()),
    ];
    let on = on.into_iter().filter(|(_, on)| *on);
    on.map(|(key, _)| format!("`{key}` is set to a value that the format cannot hold"))
        .collect()
}

/// The number that a file holds under this key, such as an alpha, or the problem.
pub(super) fn number(
    file: &TensorFile,
    key: &str,
) -> candle_core::Result<std::result::Result<f64, String>> {
    let number = file.tensor(key)?.to_dtype(DType::F64)?.flatten_all()?;
    match number.dims() {
        [1] => Ok(Ok(number.get(0)?.to_scalar::<f64>()?)),
        other => Ok(Err(format!("`{}` has shape {other:?}", shorten(key)))),
    }
}

/// B with the scaling in it, so that a scaling of 1 does the same.
pub(super) fn scaled(b: &Tensor, factor: f64) -> candle_core::Result<Tensor> {
    match factor == 1.0 {
        true => Ok(b.clone()),
        false => (b.to_dtype(DType::F64)? * factor)?.to_dtype(b.dtype()),
    }
}

fn serialized(path: &Path, tensors: Vec<(String, Tensor)>) -> Result<Vec<u8>> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(tensors, Some(metadata));
    bytes.map_err(|error| Error::file(path, error))
}

/// Writes one file, whole or not at all.
pub(super) fn write_file(path: &Path, tensors: Vec<(String, Tensor)>, what: &str) -> Result<()> {
    let mut problems = Vec::new();
    let mut whole = Vec::new();
    for (key, tensor) in tensors {
        // The scaling may be in the values now.
        if !ops::is_finite(&tensor)? {
            let (key, dtype) = (shorten(&key), tensor.dtype());
            problems.push(format!(
                "`{key}` would hold values that are not finite in {dtype:?}: the scaling is too \
                 large for them"
            ));
        }
        whole.push((key, tensor.contiguous()?));
    }
    if !problems.is_empty() {
        return Err(Error::File {
            path: path.into(),
            problems,
        });
    }
    let bytes = serialized(path, whole)?;
    let failed =
        |error: std::io::Error| Error::file(path, format!("{what} cannot be written: {error}"));
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut staged = file::temporary(parent).map_err(failed)?;
    staged.write_all(&bytes).map_err(failed)?;
    staged.as_file().sync_all().map_err(failed)?;
    staged.persist(path).map_err(|error| failed(error.error))?;
    file::sync(parent);
    Ok(())
}

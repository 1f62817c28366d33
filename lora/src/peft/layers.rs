//! An adapter as a list of layers, which all formats have in common.

use super::product::Product;
use super::save::most_common;
use super::tensors::Tensors;
use super::weights::Weights;
use super::{AdapterConfig, AdapterDir, files, keys, replace};
use crate::config::selection::{Overrides, Selection};
use crate::error::shorten;
use crate::file::{self, TensorFile};
use crate::{Error, Part, Result, Settings, Targets, TrainBias, ops};
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

    /// The update of a layer that is none of experts.
    pub fn product(&self) -> Result<Product> {
        let product = Product::of(&self.a, &self.b, self.scaling(), 1);
        product.map_err(|error| error.at(&self.path))
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
    write_with(dir, layers, Vec::new(), config(layers))
}

/// Writes the layers with other tensors, by their plain keys, under this configuration.
pub(super) fn write_with(
    dir: &Path,
    layers: &[Layer],
    others: Vec<(String, Tensor)>,
    config: AdapterConfig,
) -> Result<()> {
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
    let others = others.into_iter();
    tensors.extend(others.map(|(key, tensor)| (keys::with_prefix(&key), tensor.contiguous())));
    let with_magnitude = layers.iter().filter(|layer| layer.magnitude.is_some());
    let with_magnitude = with_magnitude.count();
    if with_magnitude > 0 && with_magnitude < layers.len() {
        problems.push("some layers have a magnitude (DoRA), others do not".into());
    }
    if tensors.is_empty() {
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
    replace::write(dir, &config.to_json()?, &bytes)
}

/// The configuration of an adapter of these layers.
pub(super) fn config(layers: &[Layer]) -> AdapterConfig {
    let mut config = AdapterConfig::new();
    config.use_dora = layers.iter().any(|layer| layer.magnitude.is_some());
    let paths = layers.iter().map(|layer| layer.path.clone());
    config.target_modules = Some(Targets::Names(paths.collect()));
    let sizes = layers.iter();
    let sizes = sizes.map(|layer| (layer.path.as_str(), layer.rank(), layer.alpha));
    set_sizes(&mut config, &sizes.collect::<Vec<_>>());
    config
}

/// Sets the ranks and alphas of layers: those of most, and a pattern for each other layer.
pub(super) fn set_sizes(config: &mut AdapterConfig, layers: &[(&str, usize, f64)]) {
    config.r = most_common(layers.iter().map(|layer| layer.1)).unwrap_or(1);
    config.lora_alpha = most_common(layers.iter().map(|layer| layer.2)).unwrap_or(1.0);
    config.rank_pattern.clear();
    config.alpha_pattern.clear();
    for (path, rank, alpha) in layers {
        let key = || format!("^{}$", fancy_regex::escape(path));
        if *rank != config.r {
            config.rank_pattern.insert(key(), *rank);
        }
        if *alpha != config.lora_alpha {
            config.alpha_pattern.insert(key(), *alpha);
        }
    }
    config.rank_pattern.sort_keys();
    config.alpha_pattern.sort_keys();
}

/// A directory's adapter by layers, of which values are read when they are asked for.
pub(super) struct Opened {
    pub file: AdapterConfig,
    pub places: Vec<Place>,
    /// The other tensors: the plain key, and the key in the file.
    pub others: Vec<(String, String)>,
    /// Everything wrong with the layers.
    pub problems: Vec<String>,
    tensors: Tensors,
}

/// Where a file has a layer's adapter.
pub(super) struct Place {
    pub path: String,
    pub of_lookup: bool,
    pub settings: Settings,
    /// More than one for weights of experts.
    pub experts: usize,
    a: String,
    b: String,
    magnitude: Option<String>,
}

impl Place {
    /// The factor of B·A times the rank: the alpha of a format without rsLoRA.
    pub fn alpha(&self) -> f64 {
        self.settings.scaling * self.settings.rank as f64
    }
}

impl Opened {
    /// Opens a directory.
    ///
    /// # Errors
    /// If a file cannot be read, or the settings cannot be understood.
    pub fn open(dir: &AdapterDir) -> Result<Self> {
        let (file, Weights { tensors }) = files::open_pair(dir)?;
        let config = file.lora_config().map_err(|mut problems| {
            problems.splice(0..0, unsupported(&file));
            Error::File {
                path: dir.path().into(),
                problems,
            }
        })?;
        let mut selection = Selection::new(&config)?;
        let mut opened = Self {
            places: Vec::new(),
            others: Vec::new(),
            problems: Vec::new(),
            file,
            tensors,
        };
        for (path, parts) in opened.parts() {
            let short = shorten(&path);
            let (Some(a), Some(b)) = (parts.get(&Part::A), parts.get(&Part::B)) else {
                opened.problems.push(format!("`{short}` lacks A or B"));
                continue;
            };
            let magnitude = parts.get(&Part::Magnitude);
            let settings = selection.settings(&path, Overrides::default())?;
            let shape = &opened.tensors.tensors()[&a.0].shape;
            let rows = shape.first().copied().unwrap_or(0);
            let of_experts = opened.file.target_parameters.is_some();
            let experts = match settings.rank {
                rank if of_experts && rank > 0 && rows % rank == 0 => rows / rank,
                _ => 1,
            };
            if experts.checked_mul(settings.rank) != Some(rows) {
                opened.problems.push(format!(
                    "A of `{short}` has shape {shape:?}, its rank is {} in the configuration",
                    settings.rank
                ));
            }
            if magnitude.is_some() != opened.file.use_dora {
                opened.problems.push(format!(
                    "`use_dora` and the magnitudes of `{short}` disagree"
                ));
            }
            opened.places.push(Place {
                of_lookup: a.1,
                a: a.0.clone(),
                b: b.0.clone(),
                magnitude: magnitude.map(|(key, _)| key.clone()),
                path,
                settings,
                experts,
            });
        }
        Ok(opened)
    }

    /// The parts of each layer: the key in the file, and whether it has an embedding's name. Notes
    /// the other tensors.
    fn parts(&mut self) -> IndexMap<String, HashMap<Part, (String, bool)>> {
        let mut parts: IndexMap<String, HashMap<_, _>> = IndexMap::new();
        for (plain, key) in self.tensors.keys() {
            match keys::parse(plain) {
                Some(parsed) if matches!(parsed.part, Part::A | Part::B | Part::Magnitude) => {
                    let of_layer = parts.entry(parsed.path.into()).or_default();
                    of_layer.insert(parsed.part, (key.clone(), parsed.of_lookup));
                }
                _ => self.others.push((plain.clone(), key.clone())),
            }
        }
        parts
    }

    /// A layer with its values.
    pub fn layer(&self, place: &Place) -> Result<Layer> {
        let magnitude = place.magnitude.as_ref();
        Ok(Layer {
            path: place.path.clone(),
            of_lookup: place.of_lookup,
            a: self.tensors.tensor(&place.a)?,
            b: self.tensors.tensor(&place.b)?,
            alpha: place.alpha(),
            magnitude: magnitude.map(|key| self.tensors.tensor(key)).transpose()?,
        })
    }

    /// The tensor with this key in the file.
    pub fn tensor(&self, key: &str) -> Result<Tensor> {
        self.tensors.tensor(key)
    }
}

/// The layers of a directory, or what no other format has a place for.
pub(super) fn read(dir: &AdapterDir) -> Result<Vec<Layer>> {
    let opened = Opened::open(dir)?;
    let mut problems = unsupported(&opened.file);
    problems.extend(opened.others.iter().map(|(plain, _)| {
        format!(
            "`{}` is no matrix of a layer: the format has no place for it",
            shorten(plain)
        )
    }));
    problems.extend(opened.problems.iter().cloned());
    let mut layers = Vec::new();
    for place in &opened.places {
        let layer = opened.layer(place)?;
        problems.extend(layer.check()?);
        layers.push(layer);
    }
    if problems.is_empty() && layers.is_empty() {
        problems.push("holds no layer".into());
    }
    match problems.is_empty() {
        true => Ok(layers),
        false => Err(Error::File {
            path: dir.path().into(),
            problems,
        }),
    }
}

/// Settings that only PEFT's format holds.
pub(super) fn unsupported(file: &AdapterConfig) -> Vec<String> {
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

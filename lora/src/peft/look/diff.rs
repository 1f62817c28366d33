//! [`diff`]: how two adapters or two checkpoints differ.

use super::ModelFile;
use super::held::{Held, HeldLayer, by_numbers};
use crate::file::TensorFile;
use crate::peft::import::find::{self, Located};
use crate::peft::import::{Format, Meaning};
use crate::peft::values::Values;
use crate::{Error, Result};
use candle_core::Tensor;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::Path;

/// How two files differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Diff {
    /// Two adapters.
    Adapters(AdapterDiff),
    /// Two checkpoints.
    Checkpoints(CheckpointDiff),
}

impl Diff {
    /// Whether nothing differs by more than this: settings, names, shapes, dtypes and scalings must be
    /// the same, and no [relative difference](LayerDiff::relative) may be larger.
    pub fn is_within(&self, tolerance: f64) -> bool {
        let near = |relative: Option<f64>| relative.is_some_and(|relative| relative <= tolerance);
        let same = |tensor: &TensorDiff| tensor.first == tensor.second && near(tensor.relative);
        match self {
            Self::Adapters(diff) => {
                diff.settings.is_empty()
                    && diff.only_first.is_empty()
                    && diff.only_second.is_empty()
                    && diff.layers.iter().all(|layer| near(layer.relative))
                    && diff.others.iter().all(same)
            }
            Self::Checkpoints(diff) => {
                diff.settings.is_empty()
                    && diff.only_first.is_empty()
                    && diff.only_second.is_empty()
                    && diff.tensors.iter().all(same)
            }
        }
    }
}

/// How two adapters differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AdapterDiff {
    /// Settings that differ.
    pub settings: Vec<SettingDiff>,
    /// Names of layers and other tensors that only the first has.
    pub only_first: Vec<String>,
    /// Names that only the second has.
    pub only_second: Vec<String>,
    /// The layers that both have.
    pub layers: Vec<LayerDiff>,
    /// Other tensors that both have: magnitudes, modules trained in full, biases.
    pub others: Vec<TensorDiff>,
    /// The Frobenius norm of all layers' differences over that of the first's updates; `None` if some
    /// layer has none.
    pub relative: Option<f64>,
}

/// How two checkpoints differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CheckpointDiff {
    /// Settings of `config.json`, or fields of the GGUF files, that differ. None between the two formats,
    /// which name these in their own ways.
    pub settings: Vec<SettingDiff>,
    /// Names of tensors that only the first has.
    pub only_first: Vec<String>,
    /// Names that only the second has.
    pub only_second: Vec<String>,
    /// The tensors that both have.
    pub tensors: Vec<TensorDiff>,
    /// The Frobenius norm of all differences over that of the first's values; `None` if some tensors
    /// cannot be compared.
    pub relative: Option<f64>,
}

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SettingDiff {
    /// The setting's key.
    pub key: String,
    /// The first's value; `None` if it has none.
    pub first: Option<Value>,
    /// The second's.
    pub second: Option<Value>,
}

/// How a layer's updates s·B·A differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LayerDiff {
    /// The layer's name.
    pub name: String,
    /// The ranks.
    pub ranks: [usize; 2],
    /// The norms of the updates; `None` where an update cannot be read.
    pub norms: [Option<f64>; 2],
    /// The norm of the difference.
    pub norm: Option<f64>,
    /// The norm of the difference over the first's norm, which does not depend on how the updates are
    /// factored; `None` if the updates cannot be compared, infinite if only the first is zero.
    pub relative: Option<f64>,
}

/// How two tensors of one name differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorDiff {
    /// The name.
    pub name: String,
    /// Dtype and shape in the first.
    pub first: String,
    /// Dtype and shape in the second.
    pub second: String,
    /// The largest difference between two values; `None` if the values cannot be compared.
    pub largest: Option<f64>,
    /// The Frobenius norm of the difference over that of the first; infinite if only the first is zero.
    pub relative: Option<f64>,
}

/// How two adapters or two checkpoints differ, without the model's code: settings, names, shapes, and
/// by how much each layer.
///
/// Adapters are compared by their updates s·B·A, so that neither the rank nor the factors matter, nor
/// which tool wrote the files. Checkpoints are compared by their values: a GGUF file is dequantised, and
/// beside safetensors it has transformers' names and order of rows. Memory holds one layer of both at a
/// time.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::peft::{Diff, diff};
/// use std::collections::HashMap;
///
/// let dir = tempfile::tempdir()?;
/// let (one, two) = (dir.path().join("1.safetensors"), dir.path().join("2.safetensors"));
/// let weight = Tensor::new(&[3f32, 4.0], &Device::Cpu)?;
/// candle_core::safetensors::save(&HashMap::from([("w", weight.clone())]), &one)?;
/// candle_core::safetensors::save(&HashMap::from([("w", (weight * 1.5)?)]), &two)?;
/// let Diff::Checkpoints(found) = diff(&one, &two)? else { panic!() };
/// assert_eq!((found.tensors[0].largest, found.relative), (Some(2.0), Some(0.5)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// If one is an adapter and the other a checkpoint, if the two have no name in common, or a file cannot
/// be read or is damaged.
pub fn diff(first: impl AsRef<Path>, second: impl AsRef<Path>) -> Result<Diff> {
    let (first, second) = (first.as_ref(), second.as_ref());
    match (find::find(first)?, find::find(second)?) {
        (Some(one), Some(two)) => adapters([first, second], [&one, &two]).map(Diff::Adapters),
        (None, None) => checkpoints(first, second).map(Diff::Checkpoints),
        (one, _) => {
            let what = |is_adapter| {
                if is_adapter {
                    "an adapter"
                } else {
                    "a checkpoint"
                }
            };
            let (is_adapter, other) = (one.is_some(), second.display());
            let problem = format!(
                "is {}, {other} is {}: only two of a kind can be compared",
                what(is_adapter),
                what(!is_adapter)
            );
            Err(Error::file(first, problem))
        }
    }
}

fn adapters(paths: [&Path; 2], located: [&Located; 2]) -> Result<AdapterDiff> {
    let gguf = located.map(|located| located.format == Format::Gguf);
    if gguf[0] != gguf[1] {
        let place = usize::from(gguf[1]);
        let problem = "is a file of llama.cpp, which may have rows in another order: convert it to \
                       the other's format first (peft::import::convert)";
        return Err(Error::file(paths[place], problem));
    }
    let (one, two) = (Held::open(located[0])?, Held::open(located[1])?);
    let mut found = AdapterDiff {
        settings: match one.format == two.format {
            true => settings(&one.settings, &two.settings),
            false => Vec::new(),
        },
        only_first: Vec::new(),
        only_second: Vec::new(),
        layers: Vec::new(),
        others: Vec::new(),
        relative: None,
    };
    for (name, layer) in &one.layers {
        match two.layers.get(name) {
            None => found.only_first.push(name.clone()),
            Some(other) => {
                found
                    .layers
                    .push(compare(name, (&one, layer), (&two, other))?);
                found
                    .others
                    .extend(magnitudes(name, (&one, layer), (&two, other))?);
            }
        }
    }
    let mine = |name: &&String| !one.layers.contains_key(*name);
    found
        .only_second
        .extend(two.layers.keys().filter(mine).cloned());
    for key in &one.others {
        match two.others.contains(key) {
            false => found.only_first.push(key.clone()),
            true => {
                let tensors = [&one, &two].map(|held| describe(&held.file, key));
                let read = || Ok([one.file.tensor(key)?, two.file.tensor(key)?]);
                found.others.push(tensor(key, tensors, read)?.0);
            }
        }
    }
    let mine = |key: &&String| !one.others.contains(key);
    found
        .only_second
        .extend(two.others.iter().filter(mine).cloned());
    if found.layers.is_empty() && found.others.is_empty() {
        return Err(strangers(
            paths,
            [found.only_first.first(), found.only_second.first()],
        ));
    }
    let square = |values: Vec<Option<f64>>| -> Option<f64> {
        let values: Option<Vec<f64>> = values.into_iter().collect();
        Some(
            values?
                .iter()
                .map(|value| value * value)
                .sum::<f64>()
                .sqrt(),
        )
    };
    let layers = found.layers.iter();
    let norm = square(layers.clone().map(|layer| layer.norm).collect());
    let of_first = square(layers.map(|layer| layer.norms[0]).collect());
    found.relative = norm
        .zip(of_first)
        .map(|(norm, first)| relative(norm, first));
    Ok(found)
}

/// The error of two files that have no name in common.
fn strangers(paths: [&Path; 2], names: [Option<&String>; 2]) -> Error {
    let name = |name: Option<&String>| name.map_or("nothing".into(), |name| format!("`{name}`"));
    let problem = format!(
        "has no name in common with {}: it holds {}, the other {}",
        paths[1].display(),
        name(names[0]),
        name(names[1])
    );
    Error::file(paths[0], problem)
}

/// The settings that differ.
fn settings(one: &Map<String, Value>, two: &Map<String, Value>) -> Vec<SettingDiff> {
    // Written by a set of Python's, whose order says nothing.
    let sorted = |value: &Value| match value {
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let mut items = items.clone();
            items.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
            Value::Array(items)
        }
        // 8 and 8.0 are one number.
        Value::Number(number) => number.as_f64().map_or(value.clone(), Value::from),
        value => value.clone(),
    };
    let mut keys: Vec<&String> = one.keys().chain(two.keys()).collect();
    keys.sort();
    keys.dedup();
    let differing = keys.into_iter().filter_map(|key| {
        let (first, second) = (one.get(key), two.get(key));
        let is_same = first.map(sorted) == second.map(sorted);
        (!is_same).then(|| SettingDiff {
            key: key.clone(),
            first: first.cloned(),
            second: second.cloned(),
        })
    });
    differing.collect()
}

fn relative(difference: f64, first: f64) -> f64 {
    match difference == 0.0 {
        true => 0.0,
        false => difference / first,
    }
}

/// Compares the updates of a layer.
fn compare(
    name: &str,
    (one, first): (&Held, &HeldLayer),
    (two, second): (&Held, &HeldLayer),
) -> Result<LayerDiff> {
    let products = [(one, first), (two, second)].map(|(held, layer)| {
        let product = held.product(layer).ok().flatten();
        let norm = product.as_ref().and_then(|product| product.norm().ok());
        (product, norm)
    });
    let [(product, norm_of_first), (other, norm_of_second)] = products;
    let norm = match same_factors((one, first), (two, second))? {
        true => norm_of_first.map(|_| 0.0),
        false => {
            let difference = product.zip(other).and_then(|(one, two)| one.minus(&two));
            difference.and_then(|difference| difference.norm().ok())
        }
    };
    Ok(LayerDiff {
        name: name.into(),
        ranks: [first.rank(&one.file), second.rank(&two.file)],
        norms: [norm_of_first, norm_of_second],
        norm,
        relative: norm
            .zip(norm_of_first)
            .map(|(norm, first)| relative(norm, first)),
    })
}

/// Whether the two updates are the same product of the same matrices, so that they differ by nothing
/// at all, not even by rounding.
fn same_factors(
    (one, first): (&Held, &HeldLayer),
    (two, second): (&Held, &HeldLayer),
) -> Result<bool> {
    if first.scaling != second.scaling {
        return Ok(false);
    }
    for meaning in [Meaning::A, Meaning::B] {
        let (Some(one), Some(two)) = (one.tensor(first, meaning)?, two.tensor(second, meaning)?)
        else {
            return Ok(false);
        };
        if one.dims() != two.dims() || Values::of_difference(&one, &two)?.energy != 0.0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn magnitudes(
    name: &str,
    (one, first): (&Held, &HeldLayer),
    (two, second): (&Held, &HeldLayer),
) -> Result<Option<TensorDiff>> {
    let keys = [first, second].map(|layer| layer.keys.get(&Meaning::Magnitude));
    let name = format!("{name} (magnitude)");
    let described = |held: &Held, key: Option<&String>| match key {
        Some(key) => describe(&held.file, key),
        None => "none".into(),
    };
    let tensors = [described(one, keys[0]), described(two, keys[1])];
    Ok(match keys {
        [None, None] => None,
        [Some(key), Some(other)] => {
            let read = || -> Result<[Tensor; 2]> {
                let tensors = [one.file.tensor(key)?, two.file.tensor(other)?];
                Ok([tensors[0].flatten_all()?, tensors[1].flatten_all()?])
            };
            Some(tensor(&name, tensors, read)?.0)
        }
        _ => Some(TensorDiff {
            name,
            first: tensors[0].clone(),
            second: tensors[1].clone(),
            largest: None,
            relative: None,
        }),
    })
}

fn describe(file: &TensorFile, key: &str) -> String {
    let info = &file.tensors()[key];
    format!("{} {:?}", info.dtype, info.shape)
}

/// Compares two tensors; also the energies of the difference and of the first.
fn tensor(
    name: &str,
    [first, second]: [String; 2],
    read: impl Fn() -> Result<[Tensor; 2]>,
) -> Result<(TensorDiff, Option<[f64; 2]>)> {
    let mut found = TensorDiff {
        name: name.into(),
        first,
        second,
        largest: None,
        relative: None,
    };
    let [one, two] = read()?;
    if one.dims() != two.dims() {
        return Ok((found, None));
    }
    let (difference, values) = (Values::of_difference(&one, &two)?, Values::of(&one)?);
    if difference.wrong > 0 {
        return Ok((found, None));
    }
    found.largest = Some(difference.largest);
    found.relative = Some(relative(difference.norm(), values.norm()));
    Ok((found, Some([difference.energy, values.energy])))
}

fn checkpoints(first: &Path, second: &Path) -> Result<CheckpointDiff> {
    let [one, two] = ModelFile::open_both([first, second])?;
    let same_format = one.format() == two.format();
    let mut found = CheckpointDiff {
        settings: match same_format {
            true => settings(&one.settings()?, &two.settings()?),
            false => Vec::new(),
        },
        only_first: Vec::new(),
        only_second: Vec::new(),
        tensors: Vec::new(),
        relative: None,
    };
    let mut sums = Some([0.0; 2]);
    let mut names = one.names();
    names.sort_by(|a, b| by_numbers(a, b));
    for name in &names {
        let (Some(mine), Some(other)) = (one.report(name), two.report(name)) else {
            found.only_first.push(name.clone());
            continue;
        };
        let described = [mine, other].map(|report| format!("{} {:?}", report.dtype, report.shape));
        let readable = one.holds_floats(name) && two.holds_floats(name);
        let (diff, energies) = match readable {
            true => tensor(name, described, || {
                Ok([one.tensor(name)?, two.tensor(name)?])
            })?,
            false => whole_numbers(name, described, (&one, &two))?,
        };
        sums = sums
            .zip(energies)
            .map(|(sums, energies)| [sums[0] + energies[0], sums[1] + energies[1]]);
        found.tensors.push(diff);
    }
    let others = two.names().into_iter();
    found.only_second = others.filter(|name| one.report(name).is_none()).collect();
    found.only_second.sort_by(|a, b| by_numbers(a, b));
    if found.tensors.is_empty() {
        return Err(strangers(
            [first, second],
            [found.only_first.first(), found.only_second.first()],
        ));
    }
    found.relative = sums.map(|[difference, first]| relative(difference.sqrt(), first.sqrt()));
    Ok(found)
}

/// Compares tensors that hold no floats, such as counters, as far as these can be read.
fn whole_numbers(
    name: &str,
    described: [String; 2],
    (one, two): (&ModelFile, &ModelFile),
) -> Result<(TensorDiff, Option<[f64; 2]>)> {
    let read = || Ok([one.tensor(name)?, two.tensor(name)?]);
    tensor(name, described.clone(), read).or_else(|_| {
        let [first, second] = described;
        let diff = TensorDiff {
            name: name.into(),
            first,
            second,
            largest: None,
            relative: None,
        };
        Ok((diff, None))
    })
}

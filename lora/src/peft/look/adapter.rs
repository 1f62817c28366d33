//! Looking into an adapter.

use super::held::{Held, HeldLayer};
use super::inspect::InspectOptions;
use super::report::{AdapterReport, LayerReport, TensorReport};
use crate::Result;
use crate::error::shorten;
use crate::file::TensorFile;
use crate::peft::import::Meaning;
use crate::peft::import::find::Located;
use crate::peft::product::Spectrum;
use crate::peft::values::Values;
use candle_core::{DType, Tensor};
use std::path::Path;

pub(super) fn report(
    path: &Path,
    located: &Located,
    options: &InspectOptions,
) -> Result<AdapterReport> {
    let mut held = Held::open(located)?;
    let mut strange = std::mem::take(&mut held.strange);
    let mut layers = Vec::new();
    let mut zero = Vec::new();
    for (name, layer) in &held.layers {
        let mut report = outline(&held, name, layer, &mut strange);
        if options.values {
            report.update = look(&held, name, layer, &mut strange, &mut zero)?;
        }
        layers.push(report);
    }
    note_zero(&zero, layers.len(), &mut strange);
    let mut others = Vec::new();
    for key in &held.others {
        let mut report = tensor(&held.file, key);
        let is_float = ["F64", "F32", "F16", "BF16"].contains(&report.dtype.as_str());
        if options.values && is_float {
            report.fill(&held.file.tensor(key)?, &mut strange)?;
        }
        others.push(report);
    }
    let norms: Option<Vec<f64>> = layers
        .iter()
        .map(|layer| Some(layer.update?.norm))
        .collect();
    Ok(AdapterReport {
        path: path.into(),
        format: held.format.to_string(),
        suspicious: strange,
        settings: held.settings,
        parameters: layers.iter().map(|layer| layer.parameters).sum::<u64>()
            + others.iter().map(|other| other.parameters).sum::<u64>(),
        bytes: layers.iter().map(|layer| layer.bytes).sum::<u64>()
            + others.iter().map(|other| other.bytes).sum::<u64>(),
        layers,
        others,
        norm: norms.map(|norms| norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt()),
    })
}

/// What the header says of a layer.
fn outline(held: &Held, name: &str, layer: &HeldLayer, strange: &mut Vec<String>) -> LayerReport {
    let short = shorten(name);
    let shape = |meaning| layer.shape(&held.file, meaning).unwrap_or_default();
    let (a, b) = (shape(Meaning::A), shape(Meaning::B));
    let has = |meaning| layer.keys.contains_key(&meaning);
    match (has(Meaning::A), has(Meaning::B)) {
        (true, false) => strange.push(format!("`{short}` has A, but no B")),
        (false, true) => strange.push(format!("`{short}` has B, but no A")),
        (false, false) => strange.push(format!("`{short}` has neither A nor B")),
        (true, true) => {}
    }
    if layer.scaling == 0.0 {
        strange.push(format!("`{short}` has alpha 0: its update is zero"));
    } else if !layer.scaling.is_finite() {
        strange.push(format!("`{short}` has the scaling {}", layer.scaling));
    }
    let tensors = layer.keys.values().map(|key| tensor(&held.file, key));
    let tensors: Vec<TensorReport> = tensors.collect();
    let mut dtypes: Vec<&str> = [Meaning::A, Meaning::B, Meaning::Magnitude]
        .iter()
        .filter_map(|meaning| layer.keys.get(meaning))
        .filter_map(|key| tensors.iter().find(|report| report.name == *key))
        .map(|report| report.dtype.as_str())
        .collect();
    dtypes.dedup();
    LayerReport {
        name: name.into(),
        outputs: b.first().copied().unwrap_or(0),
        inputs: a.iter().skip(1).product(),
        rank: layer.rank(&held.file),
        experts: layer.experts,
        scaling: layer.scaling,
        dtype: dtypes.join(", "),
        dora: has(Meaning::Magnitude),
        parameters: tensors.iter().map(|tensor| tensor.parameters).sum(),
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        update: None,
    }
}

/// What the values of a layer say.
fn look(
    held: &Held,
    name: &str,
    layer: &HeldLayer,
    strange: &mut Vec<String>,
    zero: &mut Vec<String>,
) -> Result<Option<Spectrum>> {
    let short = shorten(name);
    let mut whole = true;
    for (meaning, what) in [
        (Meaning::A, "A"),
        (Meaning::B, "B"),
        (Meaning::Magnitude, "the magnitude"),
    ] {
        let Some(tensor) = held.tensor(layer, meaning)? else {
            whole &= meaning == Meaning::Magnitude;
            continue;
        };
        if !tensor.dtype().is_float() {
            strange.push(format!(
                "{what} of `{short}` is {:?}, no floats",
                tensor.dtype()
            ));
            whole = false;
            continue;
        }
        let values = Values::of(&tensor)?;
        if values.wrong > 0 {
            let wrong = values.wrong;
            strange.push(format!(
                "{what} of `{short}` holds {wrong} values that are NaN or infinite"
            ));
            whole = false;
        }
        let is_zero = values.wrong == 0 && values.energy == 0.0;
        match meaning {
            Meaning::B if is_zero => zero.push(name.into()),
            Meaning::A if is_zero => {
                strange.push(format!("A of `{short}` is zero everywhere"));
            }
            Meaning::A | Meaning::B if tensor.rank() >= 2 => {
                let dimension = usize::from(meaning == Meaning::B);
                let unused = unused(&tensor, dimension)?;
                if !unused.is_empty() {
                    strange.push(unused_note(&short, what, dimension, &unused, &tensor));
                }
            }
            _ => {}
        }
    }
    if !whole {
        return Ok(None);
    }
    match held.product(layer) {
        Ok(Some(product)) => Ok(Some(Spectrum::of(&product.singular_values()?))),
        Ok(None) => Ok(None),
        Err(error) => {
            strange.push(format!("`{short}`: {error}"));
            Ok(None)
        }
    }
}

/// The directions of the rank whose values are all zero, along this dimension.
fn unused(tensor: &Tensor, dimension: usize) -> Result<Vec<usize>> {
    let mut sizes = tensor.abs()?.to_dtype(DType::F64)?;
    for other in (0..tensor.rank()).rev().filter(|other| *other != dimension) {
        sizes = sizes.max(other)?;
    }
    let sizes: Vec<f64> = sizes.to_vec1()?;
    let zero = sizes.iter().enumerate().filter(|(_, size)| **size == 0.0);
    Ok(zero.map(|(place, _)| place).collect())
}

fn unused_note(
    short: &str,
    what: &str,
    dimension: usize,
    unused: &[usize],
    tensor: &Tensor,
) -> String {
    let kind = if dimension == 1 { "columns" } else { "rows" };
    let all = tensor.dims()[dimension];
    let mut list: Vec<String> = unused.iter().take(8).map(usize::to_string).collect();
    if unused.len() > 8 {
        list.push("..".into());
    }
    format!(
        "`{short}` uses {} of its {all} directions: {kind} {} of {what} are zero",
        all - unused.len(),
        list.join(", ")
    )
}

/// Notes the layers whose B is zero.
fn note_zero(zero: &[String], all: usize, strange: &mut Vec<String>) {
    if zero.is_empty() {
        return;
    }
    if zero.len() == all {
        let problem = "B is zero in every layer: the adapter does nothing, as before training";
        strange.insert(0, problem.into());
        return;
    }
    let notes = zero
        .iter()
        .map(|name| format!("B of `{}` is zero everywhere", shorten(name)));
    strange.splice(0..0, notes.collect::<Vec<_>>());
}

/// What the header says of a tensor.
fn tensor(file: &TensorFile, key: &str) -> TensorReport {
    let info = &file.tensors()[key];
    TensorReport {
        name: key.into(),
        dtype: info.dtype.to_string(),
        parameters: info.shape.iter().map(|n| *n as u64).product(),
        shape: info.shape.clone(),
        bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
        norm: None,
        largest: None,
    }
}

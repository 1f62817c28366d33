//! mlx-lm's files: `adapters.safetensors` with `lora_a` (in, r) and `lora_b` (r, out), and
//! `adapter_config.json` with the scaling.

use super::find::MLX;
use super::{Found, Meaning, Meant};
use crate::error::shorten;
use crate::file::{self, TensorFile, read_bounded};
use crate::peft::config::json_bytes;
use crate::peft::layers::{Layer, scaled, write_file};
use crate::peft::{CONFIG_FILE, keys};
use crate::{Error, Result};
use candle_core::Tensor;
use indexmap::IndexMap;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::Path;

const A: &str = "lora_a";
const B: &str = "lora_b";
/// DoRA's magnitude.
const M: &str = "m";

/// What a key is, and of which layer.
pub(super) fn meant(key: &str) -> Option<Meant> {
    let (path, part) = key.rsplit_once('.')?;
    let meaning = match part {
        A => Meaning::A,
        B => Meaning::B,
        M => Meaning::Magnitude,
        _ => return None,
    };
    Some((path.into(), meaning))
}

/// The layers of the file, with the settings beside it.
pub(super) fn read(file: &TensorFile) -> Result<Found<Vec<Layer>>> {
    let mut problems = Vec::new();
    let scale = match scale(file.path())? {
        Ok(scale) => scale,
        Err(problem) => return Ok(Err(vec![problem])),
    };
    let mut modules: IndexMap<&str, HashMap<&str, &str>> = IndexMap::new();
    for key in file.tensors().keys() {
        match key.rsplit_once('.') {
            Some((path, part)) if [A, B, M].contains(&part) => {
                modules.entry(path).or_default().insert(part, key);
            }
            _ => problems.push(format!(
                "`{}` is neither `{A}` nor `{B}`: a layer trained in full has no place in an \
                 adapter of low rank",
                shorten(key)
            )),
        }
    }
    let mut layers = Vec::new();
    for (path, tensors) in modules {
        let get = |part: &str| tensors.get(part).map(|key| file.tensor(key)).transpose();
        let (Some(a), Some(b)) = (get(A)?, get(B)?) else {
            problems.push(format!("`{}` lacks `{A}` or `{B}`", shorten(path)));
            continue;
        };
        if a.rank() != 2 || b.rank() != 2 {
            problems.push(format!(
                "`{}` has `{A}` of shape {:?}: the matrices of experts are not converted",
                shorten(path),
                a.dims()
            ));
            continue;
        }
        let rank = a.dims()[1];
        layers.push(Layer {
            path: path.into(),
            of_lookup: keys::is_embedding_path(path),
            a: a.t()?,
            b: b.t()?,
            alpha: scale * rank as f64,
            magnitude: get(M)?,
        });
    }
    Ok(match problems.is_empty() {
        true => Ok(layers),
        false => Err(problems),
    })
}

/// The scaling of all layers, from the settings beside the weights.
pub(super) fn scale(weights: &Path) -> Result<std::result::Result<f64, String>> {
    let path = weights.with_file_name(CONFIG_FILE);
    if !path.is_file() {
        return Ok(Err(format!(
            "has no {CONFIG_FILE} beside it, which tells mlx-lm's scaling"
        )));
    }
    let config = file::parse_json(&read_bounded(&path)?);
    let config = config.map_err(|error| Error::file(&path, error))?;
    let kind = config.get("fine_tune_type").and_then(Value::as_str);
    if kind == Some("full") {
        return Ok(Err(
            "was trained in full: it is no adapter of low rank".into()
        ));
    }
    let scale = config.pointer("/lora_parameters/scale");
    Ok(match scale.and_then(Value::as_f64) {
        Some(scale) => Ok(scale),
        None => Err(format!(
            "{CONFIG_FILE} beside it has no number `lora_parameters.scale`"
        )),
    })
}

/// Writes mlx-lm's directory.
pub(super) fn write(layers: &[Layer], dir: &Path) -> Result<Found<()>> {
    let mut problems = Vec::new();
    for layer in layers.iter().filter(|layer| layer.a.rank() != 2) {
        let path = shorten(&layer.path);
        problems.push(format!(
            "`{path}` is a convolution, which mlx-lm does not adapt"
        ));
    }
    if !problems.is_empty() {
        return Ok(Err(problems));
    }
    let rank = layers.iter().map(Layer::rank).max().unwrap_or(1);
    let scale = layers.first().map_or(1.0, Layer::scaling);
    // A scaling of zero leaves nothing to multiply B by.
    let scale = if scale == 0.0 { 1.0 } else { scale };
    let mut tensors = Vec::new();
    for layer in layers {
        let missing = rank - layer.rank();
        let a = layer.a.pad_with_zeros(0, 0, missing)?.t()?;
        let b = scaled(&layer.b, layer.scaling() / scale)?;
        let b = b.pad_with_zeros(1, 0, missing)?.t()?;
        let mut add = |part: &str, tensor: Tensor| {
            tensors.push((format!("{}.{part}", layer.path), tensor));
        };
        add(A, a);
        add(B, b);
        if let Some(magnitude) = &layer.magnitude {
            add(M, magnitude.clone());
        }
    }
    let dora = layers.iter().any(|layer| layer.magnitude.is_some());
    let keys: BTreeSet<&str> = layers.iter().map(|layer| in_block(&layer.path)).collect();
    let config = json!({
        "fine_tune_type": if dora { "dora" } else { "lora" },
        "lora_parameters": {"dropout": 0.0, "keys": keys, "rank": rank, "scale": scale},
        // All of the model's blocks.
        "num_layers": -1,
    });
    let failed = |error: std::io::Error| {
        Error::file(dir, format!("mlx-lm's files cannot be written: {error}"))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let bytes = json_bytes(&config).map_err(|error| Error::file(dir, error))?;
    let mut staged = file::temporary(dir).map_err(failed)?;
    staged.write_all(&bytes).map_err(failed)?;
    write_file(&dir.join(MLX), tensors, "mlx-lm's weights")?;
    let path = dir.join(CONFIG_FILE);
    staged.persist(path).map_err(|error| failed(error.error))?;
    Ok(Ok(()))
}

/// mlx-lm's name of a layer: its path in its block, or in the model for a layer in none.
fn in_block(path: &str) -> &str {
    let segments: Vec<&str> = path.split('.').collect();
    let number = segments
        .iter()
        .position(|segment| segment.parse::<usize>().is_ok());
    match number {
        Some(place) => {
            let length: usize = segments[..=place].iter().map(|part| part.len() + 1).sum();
            path.get(length..).unwrap_or(path)
        }
        None => path,
    }
}

//! The optimiser's state as a file.

use super::adamw::{Moments, Tracked};
use crate::file::{TensorFile, stage, sync};
use crate::path::join;
use crate::{Error, Result, ops};
use candle_core::{Device, Tensor};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

/// Endings of the keys, in PyTorch's words.
const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";
const STEPS: &str = "step";

/// The state of these parameters, each tensor with its key behind the prefix.
pub(super) fn tensors(slots: &[Tracked], prefix: &str) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    for Tracked {
        path,
        state: Moments {
            first,
            second,
            steps,
        },
        ..
    } in slots
    {
        let steps = Tensor::new(i64::from(*steps), &Device::Cpu)?;
        for (end, tensor) in [(FIRST, first), (SECOND, second), (STEPS, &steps)] {
            tensors.push((key(prefix, path, end), tensor.clone()));
        }
    }
    Ok(tensors)
}

fn key(prefix: &str, path: &str, end: &str) -> String {
    join(prefix, &join(path, end))
}

/// Writes a file of these tensors, with this beside them.
pub(super) fn write(
    path: &Path,
    tensors: Vec<(String, Tensor)>,
    beside: impl IntoIterator<Item = (String, String)>,
) -> Result<()> {
    let tensors = tensors.into_iter().map(|(key, tensor)| {
        let tensor = tensor.detach().to_device(&Device::Cpu)?.contiguous()?;
        Ok((key, tensor))
    });
    let tensors: Vec<_> = tensors.collect::<Result<_>>()?;
    let values: Vec<&Tensor> = tensors.iter().map(|(_, tensor)| tensor).collect();
    if let Some(place) = ops::first_not_finite(&values)? {
        let problem = format!(
            "cannot be written: `{}` holds values that are not finite, with which no training goes on",
            tensors[place].0
        );
        return Err(Error::file(path, problem));
    }
    let format = [("format".to_string(), "pt".to_string())];
    let metadata: HashMap<_, _> = format.into_iter().chain(beside).collect();
    let bytes = safetensors::serialize(tensors, Some(metadata));
    let bytes = bytes.map_err(|error| Error::file(path, error))?;
    replace(path, &bytes).map_err(|error| Error::file(path, format!("cannot be written: {error}")))
}

/// Puts the state of a file into these parameters, if all of the file is right. `used` holds the keys
/// that are something else's.
pub(super) fn load(
    slots: &mut [Tracked],
    file: &TensorFile,
    prefix: &str,
    mut used: HashSet<String>,
) -> Result<()> {
    let mut states = Vec::new();
    let mut problems = Vec::new();
    for slot in slots.iter() {
        let mut read = |end: &str, like: Option<&Tensor>| {
            let key = key(prefix, &slot.path, end);
            let value = match file.shape(&key) {
                Some(_) => value(file, &key, like),
                None => Err("is missing".into()),
            };
            let value = value.map_err(|problem| problems.push(format!("`{key}` {problem}")));
            used.insert(key);
            value.ok()
        };
        let Moments { first, second, .. } = &slot.state;
        let first = read(FIRST, Some(first));
        let second = read(SECOND, Some(second));
        let steps = read(STEPS, None);
        let (Some(first), Some(second), Some(steps)) = (first, second, steps) else {
            continue;
        };
        match steps.to_scalar::<i64>().map(u32::try_from) {
            Ok(Ok(steps)) => states.push(Moments {
                first,
                second,
                steps,
            }),
            _ => problems.push(format!("`{}.{STEPS}` is no number of steps", slot.path)),
        }
    }
    let mut rest: Vec<_> = file.tensors().keys().collect();
    rest.retain(|key| !used.contains(*key));
    rest.sort();
    problems.extend(
        rest.iter()
            .map(|key| format!("`{key}` belongs to no parameter of this optimiser")),
    );
    if !problems.is_empty() {
        return Err(Error::File {
            path: file.path().into(),
            problems,
        });
    }
    // Only now, when the whole file is read and checked: no half of a state is ever taken.
    for (slot, state) in slots.iter_mut().zip(states) {
        slot.state = state;
    }
    Ok(())
}

/// A tensor of the file in the form of a moment; or, without one, as it is.
fn value(file: &TensorFile, key: &str, like: Option<&Tensor>) -> Result<Tensor, String> {
    let unread = |error: candle_core::Error| format!("cannot be read: {error}");
    let value = file.tensor(key).map_err(|error| error.to_string())?;
    let Some(like) = like else {
        return Ok(value);
    };
    if value.dims() != like.dims() {
        let (found, own) = (value.dims(), like.dims());
        return Err(format!("has shape {found:?}, the parameter {own:?}"));
    }
    if !value.dtype().is_float() {
        return Err(format!(
            "is of {:?}, not a floating-point dtype",
            value.dtype()
        ));
    }
    let value = value.to_dtype(like.dtype()).map_err(unread)?;
    if !ops::is_finite(&value).map_err(|error| error.to_string())? {
        return Err("holds values that are not finite".into());
    }
    value.to_device(like.device()).map_err(unread)
}

/// Writes the file under a temporary name, flushes the file and moves it into place. So a crash
/// leaves the old state or the new one, never a part.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    stage(dir, bytes)?.persist(path)?;
    sync(dir);
    Ok(())
}

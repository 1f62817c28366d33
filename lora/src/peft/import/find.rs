//! Where a path has an adapter, and in which format.

use super::Format;
use crate::error::shorten;
use crate::file::TensorFile;
use crate::gguf::header::{self, Field, Wanted};
use crate::gguf::is_gguf;
use crate::peft::replace::place;
use crate::peft::{CONFIG_FILE, WEIGHTS_FILE, adapters_in, files};
use crate::{Error, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// mlx-lm's file with the weights.
pub(super) const MLX: &str = "adapters.safetensors";

/// diffusers' file.
pub(super) const DIFFUSERS: &str = "pytorch_lora_weights.safetensors";

/// An adapter that was found.
#[derive(Clone, Debug)]
pub(in crate::peft) struct Located {
    pub format: Format,
    /// The file with the weights.
    pub weights: PathBuf,
    /// The directory with PEFT's settings beside the weights.
    pub dir: Option<PathBuf>,
}

/// The adapter at this path: a directory, or a file alone. `None` for anything that holds none.
///
/// # Errors
/// If a file cannot be read or is damaged.
pub(in crate::peft) fn find(path: &Path) -> Result<Option<Located>> {
    if path.is_dir() {
        return in_dir(path);
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default();
    if name == CONFIG_FILE || (name == WEIGHTS_FILE && place(parent, CONFIG_FILE).is_file()) {
        return in_dir(parent);
    }
    if name.to_string_lossy().ends_with(".index.json") {
        return Ok(None);
    }
    let format = match is_gguf(path) {
        true => is_gguf_adapter(path)?.then_some(Format::Gguf),
        false => Format::of(TensorFile::open(path)?.tensors().keys().map(String::as_str)),
    };
    Ok(format.map(|format| Located {
        format,
        weights: path.into(),
        dir: None,
    }))
}

fn in_dir(dir: &Path) -> Result<Option<Located>> {
    let located = |format, weights, dir| {
        Ok(Some(Located {
            format,
            weights,
            dir,
        }))
    };
    let [mlx, diffusers] = [MLX, DIFFUSERS].map(|name| dir.join(name));
    let is_of_peft = place(dir, WEIGHTS_FILE).is_file();
    if !is_of_peft && mlx.is_file() {
        return located(Format::MlxLm, mlx, None);
    }
    if !is_of_peft && diffusers.is_file() {
        return located(Format::Diffusers, diffusers, None);
    }
    if !is_of_peft && !place(dir, CONFIG_FILE).is_file() {
        // Adapters in sub-directories are told, unless the directory is a model's.
        let is_model = holds_weights(dir)? || adapters_in(dir)?.is_empty();
        if is_model {
            return Ok(None);
        }
    }
    // The error tells which file is missing, or in which sub-directories adapters are.
    files::read_config(dir)?;
    let weights = files::weights_path(dir)?;
    located(Format::Peft, weights, Some(dir.into()))
}

/// Whether a directory has weights of some kind directly in it.
fn holds_weights(dir: &Path) -> Result<bool> {
    let failed = |error| Error::file(dir, error);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if [".safetensors", ".gguf", ".index.json"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_gguf_adapter(path: &Path) -> Result<bool> {
    const HEADER: Wanted = Wanted {
        keeps: |_| false,
        // A header alone is read.
        kinds: |_| true,
    };
    let file = File::open(path).map_err(|error| Error::file(path, error))?;
    let length = file.metadata().map_err(|error| Error::file(path, error))?;
    let header = header::read(&file, length.len(), &HEADER);
    let header = header.map_err(|problem| Error::file(path, problem))?;
    match header.fields.get("general.type") {
        Some(Field::Text(kind)) if kind == "adapter" => Ok(true),
        Some(Field::Text(kind)) if kind != "model" => {
            let problem = format!(
                "is neither a model nor an adapter: `general.type` is {}",
                shorten(kind)
            );
            Err(Error::file(path, problem))
        }
        _ => Ok(false),
    }
}

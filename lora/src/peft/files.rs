//! Reading and writing the two files of a directory.

use super::replace::place;
use super::weights::Weights;
use super::{AdapterConfig, AdapterDir, CONFIG_FILE, WEIGHTS_FILE};
use crate::file::read_bounded;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

pub(super) fn read_config(dir: &Path) -> Result<Vec<u8>> {
    let path = place(dir, CONFIG_FILE);
    if !dir.is_dir() {
        return Err(Error::file(dir, no_directory(dir)));
    }
    if !path.exists() {
        let named = super::adapters_in(dir).unwrap_or_default();
        let named: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        let hint = match named.is_empty() {
            true => files_of_other_tools(dir),
            false => format!(
                "; there are adapters in its sub-directories {}",
                named.join(", ")
            ),
        };
        return Err(Error::file(dir, format!("holds no {CONFIG_FILE}{hint}")));
    }
    read_bounded(&path)
}

/// What a path is that is no directory, and what to do.
fn no_directory(path: &Path) -> String {
    let what = "is no directory; PEFT saves an adapter as a directory";
    if path.is_file() {
        return format!(
            "{what}, with {CONFIG_FILE} and {WEIGHTS_FILE} in it: name the directory. A single file \
             of kohya, diffusers or mlx-lm becomes such a directory with peft::import"
        );
    }
    let text = path.to_string_lossy();
    let parts: Vec<&str> = text.split('/').collect();
    let is_name = |part: &&str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    match parts.len() == 2 && parts.iter().all(is_name) {
        true => format!(
            "{what}. If `{text}` is a name on the Hugging Face hub: download its files first, with \
             `hf download {text} --local-dir adapter`, and name that directory"
        ),
        false => what.into(),
    }
}

/// What else a directory without a configuration holds.
fn files_of_other_tools(dir: &Path) -> String {
    let is_there = |file: &str| dir.join(file).is_file();
    if is_there("adapters.safetensors") {
        return "; adapters.safetensors is a file of mlx-lm: peft::import converts it".into();
    }
    if is_there("pytorch_lora_weights.safetensors") {
        return "; pytorch_lora_weights.safetensors is a file of diffusers: peft::import converts it"
            .into();
    }
    if is_there("config.json") || is_there("model.safetensors") {
        return "; it holds a model, not an adapter".into();
    }
    String::new()
}

/// Opens both files of one save. Another process may save in between: the configuration is read
/// again once the weights are open, and if it changed, both files are opened again.
pub(super) fn open_pair(dir: &AdapterDir) -> Result<(AdapterConfig, Weights)> {
    for _ in 0..16 {
        let json = read_config(dir.path())?;
        let mut config = AdapterConfig::parse(dir.path(), &json)?;
        config.weigh(dir.weight);
        let weights = Weights::open(dir)?;
        if read_config(dir.path())? == json {
            if let Some(note) = config.unknown_note() {
                dir.tell(&note);
            }
            return Ok((config, weights));
        }
    }
    Err(Error::file(
        dir.path(),
        "is being written all the time: try again when no process saves to it",
    ))
}

/// The path of the weights. Tells what there is in their place.
pub(super) fn weights_path(dir: &Path) -> Result<PathBuf> {
    let path = place(dir, WEIGHTS_FILE);
    if path.exists() {
        return Ok(path);
    }
    let pickle = dir.join("adapter_model.bin");
    if pickle.exists() {
        return Err(Error::file(
            pickle,
            "is a pickle, which can run code when it is read, and is never read here; save the \
             adapter again in PEFT with safe_serialization=True",
        ));
    }
    let shards = shards(dir);
    let problem = match shards.is_empty() {
        true => format!("holds {CONFIG_FILE}, but no {WEIGHTS_FILE}: was all of it copied?"),
        false => format!(
            "holds its weights in shards ({}), which PEFT does not read either. Join them: in \
             Python, load each with safetensors.torch.load_file, update one dictionary with all, \
             and save that as {WEIGHTS_FILE} with save_file",
            shards.join(", ")
        ),
    };
    Err(Error::file(dir, problem))
}

/// The shards of weights that a trainer cut as it cuts a whole model.
fn shards(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut shards: Vec<String> = names
        .filter(|name| {
            let weights = name.starts_with("adapter_model-") || name.starts_with("model-");
            weights && name.contains("-of-") && name.ends_with(".safetensors")
        })
        .collect();
    shards.sort();
    shards.truncate(3);
    shards
}

//! The directories of sentence-transformers.

use super::pooling::Pooling;
use crate::error::shorten;
use crate::models::keys::{read_json, read_object};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What a directory of sentence-transformers says beside the configuration of its encoder.
#[derive(Clone, Debug)]
pub(in crate::models) struct Sentences {
    /// The folder of the encoder, relative to the directory.
    pub(in crate::models) transformer: PathBuf,
    pub(in crate::models) pooling: Pooling,
    pub(in crate::models) normalize: bool,
}

impl Sentences {
    /// Reads `modules.json` and what that names; `None` if the directory has no such file.
    pub(in crate::models) fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join("modules.json");
        if !path.is_file() {
            return Ok(None);
        }
        let mut found = Self {
            transformer: PathBuf::new(),
            pooling: Pooling::Mean,
            normalize: false,
        };
        let Value::Array(modules) = read_json(&path)? else {
            return Err(Error::file(&path, "a list of modules is expected"));
        };
        for module in &modules {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            let folder = inside(text("path"))
                .ok_or_else(|| Error::file(&path, format!("{:?} is no folder", text("path"))))?;
            match text("type").rsplit('.').next().unwrap_or_default() {
                "Transformer" => found.transformer = folder,
                "Pooling" => found.pooling = pooling(&directory.join(folder).join("config.json"))?,
                "Normalize" => found.normalize = true,
                "Dropout" => {}
                _ => {
                    let module = shorten(text("type"));
                    let known = "supported are Transformer, Pooling and Normalize";
                    return Err(Error::file(
                        &path,
                        format!("a module is {module:?}: {known}"),
                    ));
                }
            }
        }
        Ok(Some(found))
    }
}

/// The folder, unless it lies elsewhere.
fn inside(folder: &str) -> Option<PathBuf> {
    use std::path::Component::{CurDir, Normal};
    let path = PathBuf::from(folder);
    let is_inside = path
        .components()
        .all(|part| matches!(part, Normal(_) | CurDir));
    is_inside.then_some(path)
}

fn pooling(path: &Path) -> Result<Pooling> {
    let settings = read_object(path)?;
    let known = "supported are cls, mean and lasttoken, one of them";
    let modes = modes(&settings);
    match modes.as_slice() {
        ["cls" | "cls_token"] => Ok(Pooling::Cls),
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["lasttoken"] => Ok(Pooling::LastToken),
        [] => Ok(Pooling::Mean),
        _ => Err(Error::file(
            path,
            format!("the pooling is {}: {known}", modes.join(", ")),
        )),
    }
}

/// The modes of pooling: newer files name one, older ones have a switch for each.
fn modes(settings: &Map<String, Value>) -> Vec<&str> {
    match settings.get("pooling_mode") {
        Some(Value::String(mode)) => return vec![mode],
        Some(Value::Array(modes)) => return modes.iter().filter_map(Value::as_str).collect(),
        _ => {}
    }
    let on = settings
        .iter()
        .filter(|(_, value)| **value == Value::Bool(true));
    on.filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
        .collect()
}

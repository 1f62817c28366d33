//! [`ModelFile`]: the weights of a model in either format, a tensor at a time.

use super::report::TensorReport;
use crate::file::{Checkpoint, read_json};
use crate::gguf::header::Field;
use crate::gguf::{GgufFile, types};
use crate::peft::import::find::is_gguf;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// A longer list or text is no short setting.
const LONG: usize = 80;

/// The weights of a model.
pub(in crate::peft) enum ModelFile {
    Safetensors(Checkpoint),
    Gguf(GgufFile),
}

impl ModelFile {
    /// Opens a file, an index, or a directory with either.
    pub fn open(path: &Path) -> Result<Self> {
        let gguf = match path.is_dir() {
            true => only_gguf(path)?,
            false => is_gguf(path)?.then(|| path.into()),
        };
        match gguf {
            Some(path) => Ok(Self::Gguf(GgufFile::open(&path)?)),
            None => Ok(Self::Safetensors(Checkpoint::open(path)?)),
        }
    }

    /// The format's name.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Safetensors(_) => "safetensors",
            Self::Gguf(_) => "GGUF",
        }
    }

    pub fn files(&self) -> usize {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.shards.len(),
            Self::Gguf(file) => file.paths().len(),
        }
    }

    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.names().map(Into::into).collect(),
            Self::Gguf(file) => file.names().map(Into::into).collect(),
        }
    }

    /// What the header says of a tensor.
    pub fn report(&self, name: &str) -> Option<TensorReport> {
        let (dtype, shape, bytes) = match self {
            Self::Safetensors(checkpoint) => {
                let info = checkpoint.info(name)?;
                let bytes = info.data_offsets.1 - info.data_offsets.0;
                (info.dtype.to_string(), info.shape.clone(), bytes as u64)
            }
            Self::Gguf(file) => {
                let info = file.info(name)?;
                let shape = match (info.matrices, info.rows) {
                    (1, 1) => vec![info.columns],
                    (1, rows) => vec![rows, info.columns],
                    (matrices, rows) => vec![matrices, rows, info.columns],
                };
                (types::name(info.kind).into(), shape, info.size)
            }
        };
        Some(TensorReport {
            name: name.into(),
            parameters: shape.iter().map(|n| *n as u64).product(),
            dtype,
            shape,
            bytes,
            norm: None,
            largest: None,
        })
    }

    /// Whether a tensor holds floats that can be read, in blocks too.
    pub fn holds_floats(&self, name: &str) -> bool {
        match self {
            Self::Safetensors(checkpoint) => {
                let info = checkpoint.info(name);
                let dtype = info.and_then(|info| DType::try_from(info.dtype).ok());
                let known = [DType::F64, DType::F32, DType::F16, DType::BF16];
                dtype.is_some_and(|dtype| known.contains(&dtype))
            }
            Self::Gguf(_) => true,
        }
    }

    /// A tensor on the CPU; one of a GGUF file in f32.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.tensor(name),
            Self::Gguf(file) => file.values(name),
        }
    }

    /// The settings that are short.
    pub fn settings(&self) -> Result<Map<String, Value>> {
        let mut settings = match self {
            Self::Safetensors(checkpoint) => {
                let path = checkpoint.shards.first().map(|shard| shard.path());
                let path = path.map(|path| path.with_file_name("config.json"));
                match path.filter(|path| path.is_file()) {
                    Some(path) => match read_json(&path)? {
                        Value::Object(settings) => settings,
                        _ => return Err(Error::file(path, "is no JSON object")),
                    },
                    None => Map::new(),
                }
            }
            Self::Gguf(file) => {
                let fields = file.fields.iter().filter_map(|(key, field)| {
                    let value = match field {
                        Field::Float(value) => json!(value),
                        Field::Unsigned(value) => json!(value),
                        Field::Signed(value) => json!(value),
                        Field::Flag(value) => json!(value),
                        Field::Text(value) => json!(value),
                        Field::Numbers(values) => json!(values),
                        Field::Texts(_) | Field::Other => return None,
                    };
                    Some((key.clone(), value))
                });
                fields.collect()
            }
        };
        settings.retain(|_, value| !value.is_null() && value.to_string().len() <= LONG);
        Ok(settings)
    }
}

/// The one GGUF file of a directory that holds no other weights.
fn only_gguf(dir: &Path) -> Result<Option<PathBuf>> {
    let failed = |error| Error::file(dir, error);
    let (mut found, mut others) = (Vec::new(), false);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".gguf") {
            found.push(path.clone());
        }
        others |= name.ends_with(".safetensors") || name.ends_with(".index.json");
    }
    match (found.as_slice(), others) {
        ([one], false) => Ok(Some(one.clone())),
        ([], _) | (_, true) => Ok(None),
        (several, _) => {
            let problem = format!("holds {} GGUF files: name the file", several.len());
            Err(Error::file(dir, problem))
        }
    }
}

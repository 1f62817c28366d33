//! [`ModelFile`]: the weights of a model in either format, a tensor at a time.

use super::report::TensorReport;
use crate::file::Checkpoint;
use crate::gguf::header::Field;
use crate::gguf::{self, GgufFile, Weights, types};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A longer list or text is no short setting.
const LONG: usize = 80;

/// The weights of a model.
pub(in crate::peft) enum ModelFile {
    Safetensors(Checkpoint),
    Gguf(GgufFile),
    /// A GGUF file under transformers' names, to stand beside safetensors.
    Renamed(Weights),
}

impl ModelFile {
    /// Opens a file, an index, or a directory with either.
    pub fn open(path: &Path) -> Result<Self> {
        match gguf::find(path)? {
            Some(path) => Ok(Self::Gguf(GgufFile::open(&path)?)),
            None => Ok(Self::Safetensors(Checkpoint::open(path)?)),
        }
    }

    /// Opens two of these, under names that both have: transformers', if one is no GGUF file.
    pub fn open_both(paths: [&Path; 2]) -> Result<[Self; 2]> {
        let both = [Self::open(paths[0])?, Self::open(paths[1])?];
        let [one, two] = &both;
        if one.format() == two.format() {
            return Ok(both);
        }
        let [one, two] = both;
        Ok([one.renamed()?, two.renamed()?])
    }

    fn renamed(self) -> Result<Self> {
        match self {
            Self::Gguf(file) => Ok(Self::Renamed(Weights::open(file.path())?)),
            other => Ok(other),
        }
    }

    /// The format's name.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Safetensors(_) => "safetensors",
            Self::Gguf(_) | Self::Renamed(_) => "GGUF",
        }
    }

    pub fn files(&self) -> usize {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.shards.len(),
            Self::Gguf(file) => file.paths().len(),
            Self::Renamed(weights) => weights.file.paths().len(),
        }
    }

    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.names().map(Into::into).collect(),
            Self::Gguf(file) => file.names().map(Into::into).collect(),
            Self::Renamed(weights) => {
                // What has no other name keeps its own, so that nothing is passed over.
                let strangers = weights.strangers.iter().map(String::as_str);
                weights.names().chain(strangers).map(Into::into).collect()
            }
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
            Self::Renamed(weights) => {
                let place = weights.place(name)?;
                let info = weights.info(name)?;
                (
                    types::name(info.kind).into(),
                    place.shape.clone(),
                    info.size,
                )
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
            Self::Gguf(_) | Self::Renamed(_) => true,
        }
    }

    /// A tensor on the CPU; one of a GGUF file in f32.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.tensor(name),
            Self::Gguf(file) => file.values(name),
            Self::Renamed(weights) => weights.tensor(name),
        }
    }

    /// The settings that are short.
    pub fn settings(&self) -> Result<Map<String, Value>> {
        let mut settings = match self {
            Self::Safetensors(checkpoint) => match checkpoint.model_config()? {
                Some(Value::Object(settings)) => settings,
                Some(_) => {
                    let problem = "has a config.json beside that is no JSON object";
                    return Err(Error::file(&checkpoint.path, problem));
                }
                None => Map::new(),
            },
            // The names of these fields are not those of a config.json.
            Self::Renamed(_) => Map::new(),
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

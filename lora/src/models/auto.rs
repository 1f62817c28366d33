//! Models by what their directory says.

use super::decoder::{Decoder, DecoderConfig};
use super::keys::read_object;
use super::{Created, Options, Weights, build};
use crate::error::warn;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// A model that [`auto`] read, by its architecture.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Auto {
    /// A language model that reads from left to right.
    Decoder(Created<Decoder>),
}

impl Auto {
    /// The decoder; an error that names what the model is if it is something else.
    ///
    /// # Errors
    /// None at present: all models are decoders.
    pub fn into_decoder(self) -> Result<Created<Decoder>> {
        match self {
            Self::Decoder(created) => Ok(created),
        }
    }
}

/// Reads a model from a directory as transformers writes it: `config.json`, and `model.safetensors`
/// or its shards with `model.safetensors.index.json`.
///
/// `model_type` says what the model is, or `architectures` where that is missing. The weights become
/// those of [`Options::dtype`] and [`Options::device`]. A warning names settings of the file that have
/// no effect here.
///
/// # Errors
/// [`Error::File`] lists everything wrong with `config.json`: a `model_type` or a class that is not
/// known, and settings that are not supported. [`Error::Weights`] lists the parameters that the files
/// lack, those of another shape, and tensors that the model lacks.
///
/// ```no_run
/// use candle_core::DType;
/// use lora::models::{self, Options};
/// use lora::{LoraConfig, LoraModel};
///
/// let created = models::auto("SmolLM2-135M", &Options::new().dtype(DType::F32))?.into_decoder()?;
/// let model = created.model.to_lora(&LoraConfig::new(8))?;
/// # Ok::<(), lora::Error>(())
/// ```
pub fn auto(directory: impl AsRef<Path>, options: &Options) -> Result<Auto> {
    let directory = directory.as_ref();
    let path = directory.join("config.json");
    let problems = |problems| Error::File {
        path: path.clone(),
        problems,
    };
    let map = read_object(&path)?;
    let config = DecoderConfig::parse(&map).map_err(problems)?;
    if let Some(problem) = other_task(&map) {
        return Err(problems(vec![problem]));
    }
    for note in &config.without_effect {
        warn(&format!("{}: {note}", path.display()));
    }
    let weights = Weights::File(directory.into());
    build(&config, weights, options).map(Auto::Decoder)
}

/// The problem with a model whose class has another head than one for the next token.
fn other_task(map: &Map<String, Value>) -> Option<String> {
    let classes = map.get("architectures")?.as_array()?;
    let class = classes.first()?.as_str()?;
    let known = class.ends_with("ForCausalLM") || class.ends_with("Model");
    (!known).then(|| {
        format!(
            "`architectures` is [{class:?}]: decoders are supported as ..ForCausalLM and ..Model"
        )
    })
}

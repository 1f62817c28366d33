//! Models by what their directory says.

use super::convnext::ConvNext;
use super::decoder::{Decoder, DecoderConfig, from_gguf};
use super::encoder::{Encoder, EncoderConfig, Sentences};
use super::keys::read_object;
use super::timm::{self, Timm};
use super::vit::{Vit, VitConfig};
use super::{Created, Options, Task, Weights, build};
use crate::error::warn;
use crate::{Error, Result, gguf};
use serde_json::{Map, Value};
use std::path::Path;

/// A model that [`auto`] read, by its architecture.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Auto {
    /// A language model that reads from left to right.
    Decoder(Box<Created<Decoder>>),
    /// A model that reads a text as a whole.
    Encoder(Box<Created<Encoder>>),
    /// A model of images, of attention.
    Vit(Box<Created<Vit>>),
    /// A model of images, of convolutions.
    ConvNext(Box<Created<ConvNext>>),
}

impl Auto {
    /// The decoder.
    ///
    /// # Errors
    /// If the model is something else, an error that says what.
    pub fn into_decoder(self) -> Result<Created<Decoder>> {
        match self {
            Self::Decoder(created) => Ok(*created),
            other => Err(other.is_no("a decoder")),
        }
    }

    /// The encoder.
    ///
    /// # Errors
    /// If the model is something else, an error that says what.
    pub fn into_encoder(self) -> Result<Created<Encoder>> {
        match self {
            Self::Encoder(created) => Ok(*created),
            other => Err(other.is_no("an encoder")),
        }
    }

    /// The vision transformer.
    ///
    /// # Errors
    /// If the model is something else, an error that says what.
    pub fn into_vit(self) -> Result<Created<Vit>> {
        match self {
            Self::Vit(created) => Ok(*created),
            other => Err(other.is_no("a vision transformer")),
        }
    }

    /// The ConvNeXt.
    ///
    /// # Errors
    /// If the model is something else, an error that says what.
    pub fn into_convnext(self) -> Result<Created<ConvNext>> {
        match self {
            Self::ConvNext(created) => Ok(*created),
            other => Err(other.is_no("a ConvNeXt")),
        }
    }

    fn is_no(&self, expected: &str) -> Error {
        let (is, model_type) = match self {
            Self::Decoder(created) => ("a decoder", created.config.model_type.as_str()),
            Self::Encoder(created) => ("an encoder", created.config.model_type.as_str()),
            Self::Vit(created) => ("a vision transformer", created.config.model_type.as_str()),
            Self::ConvNext(_) => ("a ConvNeXt", "timm"),
        };
        Error::Config(vec![format!(
            "{expected} is expected, the model is {is}: `model_type` is {model_type:?}"
        )])
    }
}

/// Reads a model from a directory as transformers writes it: `config.json`, and `model.safetensors`
/// or its shards with `model.safetensors.index.json`.
///
/// `model_type` says what the model is, or `architectures` where that is missing. The weights become
/// those of [`Options::dtype`] and [`Options::device`]. A warning names settings of the file that have
/// no effect here. In a directory of sentence-transformers, `modules.json` says how an encoder makes
/// sentence embeddings. A GGUF file, whatever its name, is read by
/// [`decoder::from_gguf`](super::decoder::from_gguf).
///
/// timm's `config.json`, which names an `architecture`, gives a ConvNeXt or a vision transformer. A path
/// that ends in `.safetensors` is a file of weights, described by `NAME.json` or `config.json` beside it.
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
    let path = directory.as_ref();
    let is_weights = path
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("safetensors"));
    // Of a file that is neither, the error says so.
    if gguf::is_gguf(path) || (path.is_file() && !is_weights) {
        let created = from_gguf(directory, options)?;
        return Ok(Auto::Decoder(Box::new(created)));
    }
    if let Some(timm) = Timm::find(directory.as_ref())? {
        return auto_timm(timm, options);
    }
    let sentences = Sentences::read(directory.as_ref())?;
    let directory = match &sentences {
        Some(sentences) => directory.as_ref().join(&sentences.transformer),
        None => directory.as_ref().into(),
    };
    let path = directory.join("config.json");
    let config = Config::read(&read_object(&path)?, sentences, options);
    let config = config.map_err(|problems| Error::File {
        path: path.clone(),
        problems,
    })?;
    for note in config.without_effect() {
        warn(&format!("{}: {note}", path.display()));
    }
    let weights = Weights::File(directory);
    Ok(match config {
        Config::Decoder(config) => Auto::Decoder(Box::new(build(&config, weights, options)?)),
        Config::Encoder(config) => Auto::Encoder(Box::new(build(&config, weights, options)?)),
        Config::Vit(config) => Auto::Vit(Box::new(build(&config, weights, options)?)),
    })
}

/// A model that timm's file describes.
fn auto_timm(timm: Timm, options: &Options) -> Result<Auto> {
    let Timm {
        description,
        weights,
        config,
    } = timm;
    if let Some(problem) = no_task(options) {
        return Err(Error::file(description, problem));
    }
    let weights = Weights::File(weights);
    Ok(match config {
        timm::Config::ConvNext(config) => {
            Auto::ConvNext(Box::new(build(&config, weights, options)?))
        }
        timm::Config::Vit(config) => Auto::Vit(Box::new(build(&config, weights, options)?)),
    })
}

/// A configuration, by its architecture.
enum Config {
    Decoder(DecoderConfig),
    Encoder(EncoderConfig),
    Vit(VitConfig),
}

impl Config {
    /// Reads a `config.json`, or tells everything wrong with it.
    fn read(
        map: &Map<String, Value>,
        sentences: Option<Sentences>,
        options: &Options,
    ) -> Result<Self, Vec<String>> {
        let (config, problem) = if EncoderConfig::is_of(map) {
            let mut config = EncoderConfig::parse(map, options.task)?;
            if let Some(sentences) = sentences {
                config.pooling = sentences.pooling;
                config.normalize = sentences.normalize;
            }
            let problem = no_classes(&config, options);
            (Self::Encoder(config), problem)
        } else if VitConfig::is_of(map) {
            (Self::Vit(VitConfig::parse(map)?), no_task(options))
        } else if let Some(problem) = unknown(map) {
            return Err(vec![problem]);
        } else {
            let config = DecoderConfig::parse(map)?;
            (Self::Decoder(config), other_task(map).or(no_task(options)))
        };
        match problem {
            Some(problem) => Err(vec![problem]),
            None => Ok(config),
        }
    }

    fn without_effect(&self) -> &[String] {
        match self {
            Self::Decoder(config) => &config.without_effect,
            Self::Encoder(config) => &config.without_effect,
            Self::Vit(config) => &config.without_effect,
        }
    }
}

/// The problem with a `model_type` that no architecture has.
fn unknown(map: &Map<String, Value>) -> Option<String> {
    let name = map.get("model_type")?.as_str()?;
    let decoders: Vec<&str> = DecoderConfig::model_types().collect();
    let encoders: Vec<&str> = EncoderConfig::model_types().collect();
    let vits: Vec<&str> = VitConfig::model_types().collect();
    (!decoders.contains(&name)).then(|| {
        format!(
            "`model_type` is {name:?}: decoders are {}; encoders are {}; models of images are {}",
            decoders.join(", "),
            encoders.join(", "),
            vits.join(", ")
        )
    })
}

/// The problem with a task for a model that has but one.
fn no_task(options: &Options) -> Option<String> {
    let task = options.task?;
    Some(format!(
        "`Options::task` is {task:?}: only encoders of text have tasks to choose from"
    ))
}

/// The problem with a number of classes that no head has.
fn no_classes(config: &EncoderConfig, options: &Options) -> Option<String> {
    let count = options.num_classes.filter(|&count| count > 0)?;
    let has_none = matches!(config.task, Task::Features | Task::MaskedLm);
    has_none.then(|| {
        format!(
            "`Options::num_classes` is {count}, but the task has no classes: choose one by \
             `Options::task`"
        )
    })
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

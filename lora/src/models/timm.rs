//! Models as timm describes them.

use super::convnext::{ConvNext, ConvNextConfig};
use super::keys::read_object;
use super::vit::{Vit, VitConfig};
use super::{Architecture, names};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The name of a ConvNeXt that is none of the named variants.
const CUSTOM: &str = "convnext";

/// A model of images with timm's description.
pub(super) struct Timm {
    /// The file that describes the model.
    pub(super) description: PathBuf,
    /// The weights: a file or a directory.
    pub(super) weights: PathBuf,
    pub(super) config: Config,
}

/// A configuration, by its architecture.
pub(super) enum Config {
    ConvNext(ConvNextConfig),
    Vit(VitConfig),
}

impl Timm {
    /// Reads what describes the model in a directory, or in a file of weights; `None` for a directory
    /// that is not timm's.
    pub(super) fn find(model: &Path) -> Result<Option<Self>> {
        let (path, is_file) = match model.extension() {
            Some(end) if end.eq_ignore_ascii_case("safetensors") => (beside(model)?, true),
            _ => (model.join("config.json"), false),
        };
        if !is_file && !path.is_file() {
            return Ok(None);
        }
        let map = read_object(&path)?;
        if !map.contains_key("architecture") {
            return match is_file {
                false => Ok(None),
                true => Err(Error::file(
                    path,
                    "`architecture` is missing, which timm's file has; of transformers' models, name the \
                     directory",
                )),
            };
        }
        let config = Config::parse(&map).map_err(|problem| Error::file(&path, problem))?;
        Ok(Some(Self {
            description: path,
            weights: model.into(),
            config,
        }))
    }
}

/// The file that describes a file of weights.
fn beside(weights: &Path) -> Result<PathBuf> {
    if !weights.is_file() {
        return Err(Error::file(weights, "there is no such file"));
    }
    let own = weights.with_extension("json");
    let general = weights.with_file_name("config.json");
    if own.is_file() {
        return Ok(own);
    }
    match general.is_file() {
        true => Ok(general),
        false => Err(Error::file(
            weights,
            format!(
                "needs its description beside it, in {} or {}, in the form of timm's config.json",
                own.display(),
                general.display()
            ),
        )),
    }
}

impl Config {
    fn parse(map: &Map<String, Value>) -> Result<Self, String> {
        let name = match &map["architecture"] {
            Value::String(name) => name.as_str(),
            other => return Err(format!("`architecture` is {other}: a name is expected")),
        };
        let empty = Map::new();
        let args = match map.get("model_args") {
            Some(Value::Object(args)) => args,
            None | Some(Value::Null) => &empty,
            Some(other) => return Err(format!("`model_args` is {other}: an object is expected")),
        };
        let size = map
            .get("pretrained_cfg")
            .and_then(|cfg| cfg.get("input_size"));
        let channels = size.and_then(|size| size.get(0)).and_then(Value::as_u64);
        let channels = channels.and_then(|channels| usize::try_from(channels).ok());
        let convnext = variant::<ConvNext>(name);
        let convnext = convnext.or((name == CUSTOM).then(ConvNextConfig::default));
        if let Some(config) = convnext {
            let mut config = with_args(&config, args)?;
            config.in_chans = channels.unwrap_or(config.in_chans);
            return Ok(Self::ConvNext(config));
        }
        if let Some(mut config) = variant::<Vit>(name) {
            if let Some(key) = args.keys().find(|key| *key != "num_classes") {
                return Err(format!(
                    "`model_args` has `{key}`: of {name} no setting is known here"
                ));
            }
            config.in_chans = channels.unwrap_or(config.in_chans);
            return Ok(Self::Vit(config));
        }
        let near = names::near(name, super::list().into_iter());
        let near = match near.is_empty() {
            true => String::new(),
            false => format!("; did you mean {}?", near.join(", ")),
        };
        Err(format!(
            "its architecture is `{name}`: ConvNeXt and vision transformers are known, and `{CUSTOM}` with \
             `model_args`{near}"
        ))
    }
}

fn variant<M: Architecture>(name: &str) -> Option<M::Config> {
    let mut variants = M::variants().iter();
    let found = variants.find(|variant| variant.name == name);
    found.map(|variant| variant.config.clone())
}

fn with_args(config: &ConvNextConfig, args: &Map<String, Value>) -> Result<ConvNextConfig, String> {
    let changed = || -> serde_json::Result<ConvNextConfig> {
        let mut config = serde_json::to_value(config)?;
        if let Some(config) = config.as_object_mut() {
            config.extend(args.clone());
        }
        serde_json::from_value(config)
    };
    changed().map_err(|error| format!("`model_args`: {error}"))
}

//! A ConvNeXt checkpoint: weights as safetensors, and beside it a JSON file in timm's form that
//! says what the model looks like and how it wants its images.

use anyhow::{Context, Result, anyhow, bail};
use candle_core::Tensor;
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::models::{self, Architecture, Created, Options, Weights};
use lora::{LoraModel, LoraModule};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where a model is and what it looks like.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The safetensors file.
    pub weights: PathBuf,
    /// The architecture.
    pub config: ConvNextConfig,
    /// The images it wants.
    pub input: Input,
}

/// What a model wants of its images, timm's `pretrained_cfg`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Channels, height, width.
    pub input_size: [usize; 3],
    /// Subtracted from each channel, whose values are from 0 to 1.
    pub mean: Vec<f64>,
    /// Then divides each channel.
    pub std: Vec<f64>,
    /// Names of the classes, if they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub label_names: Vec<String>,
}

/// The JSON file, timm's `config.json`.
#[derive(Serialize, Deserialize)]
struct ConfigFile {
    architecture: String,
    #[serde(default)]
    model_args: serde_json::Map<String, serde_json::Value>,
    pretrained_cfg: Input,
}

/// The name of a ConvNeXt that is none of the named variants.
const CUSTOM: &str = "convnext";

impl Input {
    /// Channels of an image.
    pub fn channels(&self) -> usize {
        self.input_size[0]
    }

    /// Side of an image.
    pub fn size(&self) -> usize {
        self.input_size[1]
    }

    /// Brings values from 0 to 1 into the form that the model was trained with.
    ///
    /// # Errors
    /// If the images have other channels.
    pub fn normalize(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let per_channel = |values: &[f64]| {
            let shape = (1, values.len(), 1, 1);
            Tensor::new(values, images.device())?
                .to_dtype(images.dtype())?
                .reshape(shape)
        };
        images
            .broadcast_sub(&per_channel(&self.mean)?)?
            .broadcast_div(&per_channel(&self.std)?)
    }

    fn check(&self) -> Result<()> {
        let [channels, height, width] = self.input_size;
        if ![1, 3].contains(&channels) {
            bail!("its images have {channels} channels: 1 (grey) and 3 (colour) can be read");
        }
        if height != width || height == 0 {
            bail!("its images are {height}x{width}: they must be square");
        }
        if self.mean.len() != channels || self.std.len() != channels {
            bail!("mean and std must have a value for each of {channels} channel(s)");
        }
        let values = self.mean.iter().chain(&self.std);
        if values.chain(&self.std).any(|value| !value.is_finite()) || self.std.contains(&0.0) {
            bail!("mean and std must be finite, and std not 0");
        }
        Ok(())
    }
}

impl Checkpoint {
    /// Reads what is known of a checkpoint, from `NAME.json` beside `NAME.safetensors` or else
    /// from `config.json` in its folder.
    ///
    /// # Errors
    /// If there is no such file, or its description is missing, damaged or of another kind of
    /// model.
    pub fn open(weights: &Path) -> Result<Self> {
        if !weights.is_file() {
            bail!("there is no checkpoint {}", weights.display());
        }
        let own = weights.with_extension("json");
        let general = weights.with_file_name("config.json");
        let path = if own.is_file() { own } else { general };
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "checkpoint {} needs its description beside it, in {} or {}, in the form of timm's \
                 config.json",
                weights.display(),
                weights.with_extension("json").display(),
                path.display()
            )
        })?;
        let (config, input) =
            parse(&text).with_context(|| format!("cannot use {}", path.display()))?;
        Ok(Self {
            weights: weights.into(),
            config,
            input,
        })
    }

    /// The model. With a number of classes its classifier is fresh, drawn from the seed.
    ///
    /// # Errors
    /// Lists every weight that is missing, unexpected or of another shape.
    pub fn model(&self, fresh: Option<usize>, seed: u64) -> Result<Created<ConvNext>> {
        let mut options = Options::new().seed(seed);
        if let Some(classes) = fresh {
            options = options.num_classes(classes).fresh([ConvNext::CLASSIFIER]);
        }
        let weights = Weights::File(self.weights.clone());
        models::build(&self.config, weights, &options)
            .with_context(|| format!("cannot use checkpoint {}", self.weights.display()))
    }

    /// Writes a model as `NAME.safetensors` with its description in `NAME.json` beside it.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(weights: &Path, model: &ConvNext, input: &Input) -> Result<()> {
        let params = model.to_frozen()?.named_params().into_iter();
        let tensors: HashMap<_, _> = params.map(|param| (param.path, param.tensor)).collect();
        // Not candle's `save`, whose file only its owner can read.
        let bytes = safetensors::serialize(&tensors, None);
        let written = bytes.map_err(anyhow::Error::from).and_then(|bytes| {
            let mut file = File::create(weights)?;
            file.write_all(&bytes)?;
            Ok(file.sync_all()?)
        });
        written.with_context(|| format!("cannot write {}", weights.display()))?;
        let Ok(serde_json::Value::Object(model_args)) = serde_json::to_value(model.config()) else {
            bail!("the model's configuration has no JSON form");
        };
        let file = ConfigFile {
            architecture: CUSTOM.into(),
            model_args,
            pretrained_cfg: input.clone(),
        };
        let path = weights.with_extension("json");
        let text = serde_json::to_string_pretty(&file)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn parse(text: &str) -> Result<(ConvNextConfig, Input)> {
    let file: ConfigFile = serde_json::from_str(text)?;
    file.pretrained_cfg.check()?;
    let variants = ConvNext::variants().iter();
    let variant = variants.filter(|variant| variant.name == file.architecture);
    let known = match variant.map(|variant| &variant.config).next() {
        Some(config) => config.clone(),
        None if file.architecture == CUSTOM => ConvNextConfig::default(),
        None => {
            return Err(anyhow!(
                "its architecture is `{}`: it must be a ConvNeXt",
                file.architecture
            ));
        }
    };
    let mut config = serde_json::to_value(known)?;
    if let Some(config) = config.as_object_mut() {
        config.extend(file.model_args);
    }
    let mut config: ConvNextConfig = serde_json::from_value(config).context("model_args")?;
    config.in_chans = file.pretrained_cfg.channels();
    Ok((config, file.pretrained_cfg))
}

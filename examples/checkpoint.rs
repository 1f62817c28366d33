//! A ConvNeXt checkpoint: weights as safetensors, and beside it a JSON file in timm's form that
//! says what the model looks like and how it wants its images.

use anyhow::{Context, Result, anyhow, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::models::{self, Architecture, Created, Options, Weights};
use lora::{LoraModel, LoraModule};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

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
    pub fn normalize(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = images.dims4()?;
        if channels != self.channels() {
            bail!(
                "images of {channels} channels for a model of {}",
                self.channels()
            );
        }
        // By hand: candle would wake threads of its own for it.
        let mut values = images.flatten_all()?.to_vec1::<f32>()?;
        let per_channel = self.mean.iter().zip(&self.std).cycle();
        for (values, (mean, std)) in values.chunks_mut((height * width).max(1)).zip(per_channel) {
            let (mean, std) = (*mean as f32, *std as f32);
            values
                .iter_mut()
                .for_each(|value| *value = (*value - mean) / std);
        }
        Ok(Tensor::from_vec(values, images.dims(), images.device())?)
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
        let text = fs::read_to_string(&path).with_context(|| {
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

    /// Writes a model as `NAME.safetensors` with its description in `NAME.json` beside it. A file
    /// that was there stays as it is until its successor is complete.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(weights: &Path, model: &ConvNext, input: &Input) -> Result<()> {
        let Ok(serde_json::Value::Object(model_args)) = serde_json::to_value(model.config()) else {
            bail!("the model's configuration has no JSON form");
        };
        let file = ConfigFile {
            architecture: CUSTOM.into(),
            model_args,
            pretrained_cfg: input.clone(),
        };
        let text = serde_json::to_string_pretty(&file)? + "\n";
        // Not candle's `save`, whose file only its owner can read.
        let bytes = safetensors::serialize(&tensors(model)?, None)?;
        let description = weights.with_extension("json");
        let write = || -> std::io::Result<()> {
            let staging = staging(weights)?;
            let [first, second] = ["weights", "description"].map(|name| staging.path().join(name));
            write_through(&first, &bytes)?;
            write_through(&second, text.as_bytes())?;
            fs::rename(&first, weights)?;
            fs::rename(&second, &description)
        };
        write().with_context(|| format!("cannot write {}", weights.display()))
    }

    /// Checks that a model can be [written](Self::write) here, before hours go into it. Makes the
    /// folder.
    ///
    /// # Errors
    /// If the folder cannot be written to, or a file that is no model would be replaced.
    pub fn check_output(weights: &Path) -> Result<()> {
        let name = weights.display();
        if weights.is_dir() || weights.file_name().is_none() {
            bail!("--output {name} is a folder: it must be a file, NAME.safetensors");
        }
        let description = weights.with_extension("json");
        if description == weights {
            bail!("--output {name} is its own description: it must not end with .json");
        }
        if description.exists() && !is_description(&description) {
            bail!(
                "{} stands where the description of --output {name} goes, and it is none: move it \
                 or choose another name",
                description.display()
            );
        }
        let folder = weights.parent().unwrap_or(weights);
        fs::create_dir_all(folder)
            .and_then(|()| staging(weights))
            .map(drop)
            .with_context(|| format!("cannot write --output {name}"))
    }
}

/// A folder beside a file, in which its successor is made. It is gone when this is dropped.
fn staging(file: &Path) -> std::io::Result<TempDir> {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".checkpoint-");
    builder.tempdir_in(folder.unwrap_or(Path::new(".")))
}

/// Writes a file and waits until the disk has it.
fn write_through(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn is_description(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| parse(&text).is_ok())
}

/// A model's parameters by their names.
fn tensors(model: &ConvNext) -> Result<HashMap<String, Tensor>> {
    let params = model.to_frozen()?.named_params().into_iter();
    Ok(params.map(|param| (param.path, param.tensor)).collect())
}

/// The first layer of a model, which sees the image.
pub const FIRST_LAYER: &str = "stem.0";

/// How bright red, green and blue are: Rec. 709.
const LUMA: [f32; 3] = [0.2126, 0.7152, 0.0722];

/// A model of grey images as one of images in colour. It gives for an image what it gave for the
/// image's luma, until its [first layer](FIRST_LAYER) is trained.
///
/// # Errors
/// If the model is one of images in colour already.
pub fn in_colour(model: &ConvNext, input: &Input) -> Result<(ConvNext, Input)> {
    let mut config = model.config().clone();
    let mut tensors = tensors(model)?;
    let name = format!("{FIRST_LAYER}.weight");
    let Some(grey) = tensors.remove(&name).filter(|_| config.in_chans == 1) else {
        bail!("the model's images are not grey");
    };
    let luma = Tensor::new(&LUMA, grey.device())?.reshape((1, 3, 1, 1))?;
    tensors.insert(name, grey.broadcast_mul(&luma)?);
    config.in_chans = 3;
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let input = Input {
        input_size: [3, input.size(), input.size()],
        mean: input.mean.repeat(3),
        std: input.std.repeat(3),
        label_names: input.label_names.clone(),
    };
    Ok((ConvNext::build(&config, vb)?, input))
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

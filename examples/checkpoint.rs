//! A ConvNeXt checkpoint: weights as safetensors, and beside it a JSON file in timm's form that
//! says what the model looks like and how it wants its images.

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use lora::images::Input;
use lora::models::convnext::ConvNext;
use lora::models::{self, Architecture, Created, Options};
use lora::{LoraModel, LoraModule};
use serde::Serialize;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Where a model is, and the images it wants.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The safetensors file.
    pub weights: PathBuf,
    /// The images it wants.
    pub input: Input,
}

/// The JSON file, timm's `config.json`.
#[derive(Serialize)]
struct Description {
    architecture: &'static str,
    model_args: serde_json::Map<String, serde_json::Value>,
    pretrained_cfg: Input,
}

impl Checkpoint {
    /// Reads what is known of a checkpoint, from `NAME.json` beside `NAME.safetensors` or else
    /// from `config.json` in its folder.
    ///
    /// # Errors
    /// If there is no such file, or its description is missing or damaged.
    pub fn open(weights: &Path) -> Result<Self> {
        if !weights.is_file() {
            bail!("there is no checkpoint {}", weights.display());
        }
        Ok(Self {
            weights: weights.into(),
            input: Input::read(weights)?,
        })
    }

    /// The model. With a number of classes its classifier is fresh, drawn from the seed.
    ///
    /// # Errors
    /// If the description is one of another kind of model. Lists every weight that is missing,
    /// unexpected or of another shape.
    pub fn model(&self, fresh: Option<usize>, seed: u64) -> Result<Created<ConvNext>> {
        let mut options = Options::new().seed(seed);
        if let Some(classes) = fresh {
            options = options.num_classes(classes).fresh([ConvNext::CLASSIFIER]);
        }
        let model = models::auto(&self.weights, &options).and_then(models::Auto::into_convnext);
        model.with_context(|| format!("cannot use checkpoint {}", self.weights.display()))
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
        let file = Description {
            architecture: "convnext",
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
    let value = |text: String| serde_json::from_str::<serde_json::Value>(&text).ok();
    let value = fs::read_to_string(path).ok().and_then(value);
    value.is_some_and(|value| value.get("pretrained_cfg").is_some())
}

/// A model's parameters by their names.
fn tensors(model: &ConvNext) -> Result<HashMap<String, Tensor>> {
    let params = model.to_frozen()?.named_params().into_iter();
    Ok(params.map(|param| (param.path, param.tensor)).collect())
}

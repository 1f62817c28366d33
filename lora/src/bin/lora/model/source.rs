//! Where a model is.

use crate::shell::output::is_named_gguf;
use anyhow::{Context, Result, bail};
use lora::images::Input;
use lora::models::generate::Settings;
use lora::models::{self, Auto, Hub, is_gguf};
use lora::text::Tokenizer;
use std::path::{Path, PathBuf};

/// The file of a tokenizer.
const TOKENIZER: &str = "tokenizer.json";

/// Where a model's files are, and what the user called it.
#[derive(Clone, Debug)]
pub struct Source {
    /// As the command line has it.
    pub name: String,
    /// The directory that holds `config.json`, the weights and `tokenizer.json`; or a GGUF file, which holds
    /// all of these.
    pub path: PathBuf,
}

impl Source {
    /// The model that `--model` names: a directory, a GGUF file, weights of a model of images with their
    /// description beside, or a repository of the Hugging Face hub.
    ///
    /// # Errors
    /// If it is none of these, or cannot be downloaded.
    pub fn find(model: &str) -> Result<Self> {
        let path = Path::new(model);
        let path = match (path.is_dir(), path.is_file()) {
            (true, _) => path.into(),
            (_, true) if is_gguf(path) || is_weights(path) => path.into(),
            (_, true) => bail!(
                "--model {model} is a file, and neither GGUF nor weights of a model of images in safetensors: \
                 name the directory that holds config.json, model.safetensors and tokenizer.json"
            ),
            _ if is_named_gguf(path) => bail!("--model {model} does not exist"),
            _ if is_hub_name(model) => download(model)?,
            _ => bail!(
                "--model {model} is no directory, and no name on the Hugging Face hub, which is OWNER/NAME"
            ),
        };
        Ok(Self {
            name: model.into(),
            path,
        })
    }

    /// Whether the model is a GGUF file, whose weights are quantised.
    pub fn is_gguf(&self) -> bool {
        is_gguf(&self.path)
    }

    /// Whether the model's files say what images it wants.
    pub fn is_of_images(&self) -> bool {
        is_weights(&self.path) || Input::read(&self.path).is_ok()
    }

    /// Reads the model.
    ///
    /// # Errors
    /// If its files are missing, damaged, or of a model that is not known.
    pub fn open(&self, options: &models::Options) -> Result<Auto> {
        models::auto(&self.path, options)
            .with_context(|| format!("cannot use --model {}", self.name))
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// If the files hold none, or a damaged one.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let read = match self.is_gguf() {
            true => Tokenizer::from_gguf(&self.path),
            false => Tokenizer::from_directory(&self.path),
        };
        read.with_context(|| format!("cannot use the tokenizer of --model {}", self.name))
    }

    /// How tokens are drawn as the model was published, and which of them end a text.
    ///
    /// # Errors
    /// If the files say something that has no counterpart here.
    pub fn generation(&self, tokenizer: &Tokenizer) -> Result<Settings> {
        if self.is_gguf() {
            return Ok(Settings::new().stop_tokens(tokenizer.eos()));
        }
        let settings = Settings::from_directory(&self.path);
        settings.with_context(|| format!("cannot use --model {}", self.name))
    }
}

fn is_weights(path: &Path) -> bool {
    let end = path.extension();
    end.is_some_and(|end| end.eq_ignore_ascii_case("safetensors"))
}

/// Whether a text may be OWNER/NAME on the hub.
pub(super) fn is_hub_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    let is_part = |part: &&str| !part.is_empty() && !part.starts_with(['.', '~']);
    parts.len() == 2 && parts.iter().all(is_part)
}

fn download(name: &str) -> Result<PathBuf> {
    let hub = Hub::new();
    let fetch = || -> lora::Result<PathBuf> {
        let dir = hub.fetch_model(name)?;
        // Models of images have none.
        if hub.fetch_if_there(name, TOKENIZER)?.is_some() {
            hub.fetch_tokenizer(name)?;
        }
        Ok(dir)
    };
    fetch().with_context(|| {
        format!(
            "--model {name} is no directory, and cannot be had from the Hugging Face hub under this name"
        )
    })
}

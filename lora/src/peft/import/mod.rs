//! Adapters in the formats of kohya's scripts, diffusers, mlx-lm and llama.cpp: to and from PEFT's
//! directory, and each to each.
//!
//! | format | file | what tells it |
//! |---|---|---|
//! | kohya, A1111, ComfyUI | one file | `lora_unet_.._to_q.lora_down.weight`, `.alpha` |
//! | diffusers | `pytorch_lora_weights.safetensors` | `unet...to_q.lora.down.weight`, `unet...to_q.lora_A.weight` |
//! | mlx-lm | `adapters.safetensors` and `adapter_config.json` | `model.layers.0...q_proj.lora_a` |
//! | llama.cpp | one file, GGUF | `general.type` is `adapter` |
//!
//! [`Format::find`] recognises the format by the keys. [`import`] writes PEFT's directory,
//! [`export`] what the other tool reads, [`convert`] goes from any format to any.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use lora::peft::import::{self, Format, Options};
//! use std::collections::HashMap;
//!
//! let dir = tempfile::tempdir()?;
//! let file = dir.path().join("kohya.safetensors");
//! let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
//! candle_core::safetensors::save(&HashMap::from([
//!     ("lora_unet_mid_block_to_q.lora_down.weight", ones(&[2, 3])?),
//!     ("lora_unet_mid_block_to_q.lora_up.weight", ones(&[4, 2])?),
//!     ("lora_unet_mid_block_to_q.alpha", ones(&[])?),
//! ]), &file)?;
//!
//! // The file has `_` in place of each `.`: the model's names tell which is which.
//! let options = Options::new().modules(["mid_block.to_q"]);
//! let adapter = dir.path().join("adapter");
//! assert_eq!(import::import(&file, &adapter, &options)?, Format::Kohya);
//! let config = lora::LoraConfig::from_pretrained(&adapter)?;
//! assert_eq!((config.rank, config.alpha), (2, 1.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod convert;
mod diffusers;
pub(super) mod find;
mod kohya;
mod mlx;

pub use convert::convert;

use super::{AdapterDir, GgufOptions, adapter_to_gguf, gguf_to_adapter, keys, layers};
use crate::file::TensorFile;
use crate::gguf::{self, is_gguf};
use crate::{Error, Part, Result};
use find::{DIFFUSERS, MLX};
use std::fmt;
use std::path::{Path, PathBuf};

/// What wrote a file with an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// PEFT.
    Peft,
    /// The scripts of kohya, and what follows them: A1111, ComfyUI.
    Kohya,
    /// diffusers' `save_lora_weights`, of the present or an older version.
    Diffusers,
    /// mlx-lm.
    MlxLm,
    /// llama.cpp: a GGUF file.
    Gguf,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peft => "PEFT",
            Self::Kohya => "kohya",
            Self::Diffusers => "diffusers",
            Self::MlxLm => "mlx-lm",
            Self::Gguf => "llama.cpp",
        })
    }
}

impl Format {
    /// The format of the adapter at this path, a directory or a file; `None` if there is none.
    ///
    /// # Errors
    /// If a file cannot be read or is damaged.
    pub fn find(path: impl AsRef<Path>) -> Result<Option<Self>> {
        Ok(find::find(path.as_ref())?.map(|located| located.format))
    }

    /// The format that keys are of.
    pub(super) fn of<'a>(keys: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for key in keys {
            let of_peft = || {
                let parsed = keys::parse(keys::without_prefix(key));
                parsed.is_some_and(|parsed| matches!(parsed.part, Part::A | Part::B))
            };
            let format = if kohya::is_key(key) {
                Self::Kohya
            } else if diffusers::is_key(key) {
                Self::Diffusers
            } else if key.ends_with(".lora_a") || key.ends_with(".lora_b") {
                Self::MlxLm
            } else if of_peft() {
                Self::Peft
            } else {
                continue;
            };
            found = found.or(Some(format));
            // diffusers writes PEFT's keys behind the names of its components.
            if format != Self::Peft {
                return Some(format);
            }
        }
        found
    }

    /// What to do with a file of this format where one of PEFT's is expected.
    pub(super) fn hint(self) -> Option<String> {
        (self != Self::Peft).then(|| {
            format!("the keys are those of {self}: peft::import::import converts the file")
        })
    }
}

/// What the files do not say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    component: Option<String>,
    to_component: Option<String>,
    base: Option<PathBuf>,
    modules: Vec<String>,
    gguf: GgufOptions,
}

impl Options {
    /// Nothing is said.
    pub fn new() -> Self {
        Self::default()
    }

    /// The part of a pipeline that the adapter is for: `unet`, `text_encoder`, `transformer` in
    /// diffusers' files; `unet`, `te`, `te1`, `te2` in kohya's. Needed where a file holds adapters
    /// of several. Writing puts this name before the keys; without it, `unet`.
    pub fn component(mut self, name: impl Into<String>) -> Self {
        self.component = Some(name.into());
        self
    }

    /// The name that writing puts before the keys, where the file that is read has another for the
    /// same part: kohya's `te1` is diffusers' `text_encoder`.
    pub fn to_component(mut self, name: impl Into<String>) -> Self {
        self.to_component = Some(name.into());
        self
    }

    /// The checkpoint that the adapter was trained on: a `.safetensors` file, an index, a GGUF file, or a
    /// directory. Its names and shapes tell what kohya's keys mean. `config.json` in a directory tells
    /// what [`gguf`](Self::gguf) would, if that names no architecture.
    pub fn base(mut self, path: impl Into<PathBuf>) -> Self {
        self.base = Some(path.into());
        self
    }

    /// The paths of the base model's modules, in place of [`base`](Self::base).
    pub fn modules<S: Into<String>>(mut self, paths: impl IntoIterator<Item = S>) -> Self {
        self.modules = paths.into_iter().map(Into::into).collect();
        self
    }

    /// What files of llama.cpp need to be known of the model, and how these are written.
    pub fn gguf(mut self, options: GgufOptions) -> Self {
        self.gguf = options;
        self
    }

    /// What files of llama.cpp need, from the base's `config.json` if no architecture is named.
    fn of_gguf(&self) -> Result<GgufOptions> {
        let of_base = self.base.as_deref().filter(|_| self.gguf.arch.is_none());
        let Some(base) = of_base else {
            return Ok(self.gguf.clone());
        };
        let config = match base.is_dir() {
            true => base.join("config.json"),
            false => base.with_file_name("config.json"),
        };
        let options = match config.is_file() && !is_gguf(base) {
            true => GgufOptions::from_model_config(config)?,
            false => match gguf::find(base)? {
                Some(file) => GgufOptions::from_model(&file)?,
                None => return Ok(self.gguf.clone()),
            },
        };
        Ok(options.dtype(self.gguf.dtype))
    }
}

/// Writes the adapter of a file of kohya, diffusers, mlx-lm or llama.cpp as a directory of PEFT's.
/// Returns the format that was found.
///
/// `from` is the file, or the directory where diffusers or mlx-lm put it.
///
/// # Errors
/// If the file is none of these formats, or PEFT's own; if it holds adapters of several components
/// and the options name none; if a key means no module of the base, or two; if a matrix is missing
/// or the shapes do not fit; if it holds what PEFT's format has no place for (LoHa, LoKr and LyCORIS'
/// DoRA, matrices of experts); if values are not finite; if a file cannot be read or written. Every
/// problem is listed, and the directory stays as it was.
pub fn import(from: impl AsRef<Path>, dir: impl AsRef<Path>, options: &Options) -> Result<Format> {
    let path = file_of(from.as_ref())?;
    if is_gguf(&path) {
        gguf_to_adapter(&path, dir, &options.of_gguf()?)?;
        return Ok(Format::Gguf);
    }
    let file = TensorFile::open(&path)?;
    let failed = |problems| Error::File {
        path: path.clone(),
        problems,
    };
    let format = Format::of(file.tensors().keys().map(String::as_str));
    let layers = match format {
        Some(Format::Kohya) => kohya::read(&file, options)?,
        Some(Format::Diffusers) => diffusers::read(&file, options)?,
        Some(Format::MlxLm) => mlx::read(&file)?,
        Some(Format::Peft | Format::Gguf) => Err(vec![
            "has the keys of PEFT: a directory with this file as adapter_model.safetensors, and its \
             adapter_config.json, loads as it is"
                .into(),
        ]),
        None => Err(vec![unknown(&file)]),
    };
    let layers = layers.map_err(failed)?;
    layers::write(dir.as_ref(), &layers).map(|()| format.unwrap_or(Format::Peft))
}

/// Writes the adapter of a directory in another tool's format: one file for kohya, diffusers and
/// llama.cpp, a directory for mlx-lm.
///
/// Where a format has one scaling for all layers, or none, B is multiplied by the missing factor.
/// mlx-lm has one rank: matrices of smaller ranks get zeros.
///
/// # Errors
/// If the adapter holds what the format has no place for: biases, modules trained in full, trained
/// rows; DoRA, except for mlx-lm; embeddings, except for mlx-lm and llama.cpp; convolutions for
/// mlx-lm; for llama.cpp, see [`adapter_to_gguf`]. If the format is PEFT's, or
/// a file cannot be read or written.
pub fn export(
    dir: impl Into<AdapterDir>,
    to: impl AsRef<Path>,
    format: Format,
    options: &Options,
) -> Result<()> {
    let dir = dir.into();
    if format == Format::Gguf {
        return adapter_to_gguf(dir, to, &options.of_gguf()?);
    }
    let layers = layers::read(&dir)?;
    let failed = |problems| Error::File {
        path: dir.path().into(),
        problems,
    };
    let component = options.to_component.as_ref().or(options.component.as_ref());
    let component = component.map_or("unet", String::as_str);
    match format {
        Format::Kohya => {
            let tensors = kohya::write(&layers, component).map_err(failed)?;
            layers::write_file(to.as_ref(), tensors, "kohya's file")
        }
        Format::Diffusers => {
            let tensors = diffusers::write(&layers, component).map_err(failed)?;
            layers::write_file(to.as_ref(), tensors, "diffusers' file")
        }
        Format::MlxLm => mlx::write(&layers, to.as_ref()).and_then(|result| result.map_err(failed)),
        Format::Peft | Format::Gguf => Err(failed(vec!["is PEFT's format already".into()])),
    }
}

/// The file that holds the weights.
fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let names = [MLX, DIFFUSERS];
    let mut files = names.iter().map(|name| path.join(name));
    files.find(|file| file.is_file()).ok_or_else(|| {
        Error::file(
            path,
            "holds no adapters.safetensors (mlx-lm) and no pytorch_lora_weights.safetensors \
             (diffusers): name the file",
        )
    })
}

/// What to say of a file whose keys are of no known format.
fn unknown(file: &TensorFile) -> String {
    let has = |word: &str| file.tensors().keys().any(|key| key.contains(word));
    if has(".hada_w") || has(".lokr_w") || has(".oft_") || has(".glora") {
        return "is an adapter of LyCORIS (LoHa, LoKr, OFT or GLoRA), which is not of low rank as \
                LoRA is: it cannot be converted"
            .into();
    }
    "holds no adapter that is known: it has neither kohya's keys (`lora_down`), nor those of \
     diffusers (`lora.down`), mlx-lm (`lora_a`) or PEFT (`lora_A`)"
        .into()
}

/// The result of reading or writing a format: the problems of the file, or what it holds.
type Found<T> = std::result::Result<T, Vec<String>>;

/// What a key of one of these formats is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Meaning {
    A,
    B,
    Magnitude,
    /// A number, which is the scaling times the rank.
    Alpha,
}

/// The name of a layer, and what a key is to it.
type Meant = (String, Meaning);

impl Format {
    /// What a key of this format is, and of which layer; `None` for all else.
    pub(super) fn meant(self, key: &str) -> Option<Meant> {
        match self {
            Self::Kohya => kohya::meant(key),
            Self::Diffusers => diffusers::meant(key),
            Self::MlxLm => mlx::meant(key),
            Self::Peft | Self::Gguf => {
                let (plain, _) = keys::without_adapter(keys::without_prefix(key));
                let parsed = keys::parse(&plain)?;
                let meaning = match parsed.part {
                    Part::A => Meaning::A,
                    Part::B => Meaning::B,
                    Part::Magnitude => Meaning::Magnitude,
                    _ => return None,
                };
                Some((parsed.path.into(), meaning))
            }
        }
    }

    /// The scaling of a layer that has no alpha of its own in the file, as the tool takes it.
    pub(super) fn scaling(self, file: &TensorFile, layer: &str) -> Result<f64> {
        Ok(match self {
            Self::Diffusers => diffusers::scaling(file, layer).unwrap_or(1.0),
            Self::MlxLm => mlx::scale(file.path())?.unwrap_or(1.0),
            _ => 1.0,
        })
    }
}

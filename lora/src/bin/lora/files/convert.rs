//! `lora convert`: an adapter in another format.

use crate::files::dtype::Float;
use crate::shell::common::Common;
use crate::shell::output::{Output, is_named_gguf};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use lora::peft::GgufOptions;
use lora::peft::import::{self, Format, convert};
use serde_json::json;
use std::path::PathBuf;

/// The options.
#[derive(Debug, Args)]
#[command(after_help = "\
From which format is seen in the file. What the format asked for cannot hold is an error that names it.
kohya's names need --base or --modules to be read. llama.cpp's files need the model's architecture, and for
some architectures its heads: --base with a config.json tells both.")]
pub struct Options {
    /// The adapter: a folder or file of PEFT, mlx-lm, diffusers, kohya or llama.cpp
    input: PathBuf,
    /// A folder for peft and mlx-lm, a file for gguf, kohya and diffusers
    output: PathBuf,
    /// The format to write [default: gguf for a name that ends in .gguf, else peft]
    #[arg(long, value_enum)]
    to: Option<Kind>,
    /// The base's checkpoint or folder: its names and config.json tell what the adapter's file does not
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
    /// Paths of the base's modules, in place of --base, for kohya's names
    #[arg(long, value_name = "PATHS", value_delimiter = ',')]
    modules: Vec<String>,
    /// Which part of a pipeline: unet, text_encoder.. in diffusers' files, unet, te, te1, te2 in kohya's
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// The part's name in the file to write, if another [default: that of --component, else unet]
    #[arg(long, value_name = "NAME")]
    to_component: Option<String>,
    /// llama.cpp's name of the architecture: llama, qwen2, ..
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Attention heads of the model
    #[arg(long, value_name = "N", requires = "kv_heads")]
    heads: Option<usize>,
    /// Heads of keys and values
    #[arg(long, value_name = "N", requires = "heads")]
    kv_heads: Option<usize>,
    /// Experts in a layer
    #[arg(long, value_name = "N")]
    experts: Option<usize>,
    /// The dtype of tensors in a file of llama.cpp
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Float,
    #[command(flatten)]
    out: Output,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Peft,
    Gguf,
    Kohya,
    Diffusers,
    MlxLm,
}

impl From<Kind> for Format {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Peft => Self::Peft,
            Kind::Gguf => Self::Gguf,
            Kind::Kohya => Self::Kohya,
            Kind::Diffusers => Self::Diffusers,
            Kind::MlxLm => Self::MlxLm,
        }
    }
}

/// Writes the adapter.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    let kind = options.to.unwrap_or(match is_named_gguf(&options.output) {
        true => Kind::Gguf,
        false => Kind::Peft,
    });
    let is_folder = matches!(kind, Kind::Peft | Kind::MlxLm);
    if !is_folder && options.output.is_dir() {
        bail!("{} is a folder: name a file", options.output.display());
    }
    options.out.check(&options.output)?;
    let mut gguf = GgufOptions::default().dtype(options.dtype.into());
    gguf.arch = options.arch.clone();
    (gguf.heads, gguf.kv_heads) = (options.heads, options.kv_heads);
    gguf.experts = options.experts;
    let mut asked = import::Options::new()
        .gguf(gguf)
        .modules(options.modules.clone());
    if let Some(base) = &options.base {
        asked = asked.base(base);
    }
    if let Some(name) = &options.component {
        asked = asked.component(name);
    }
    if let Some(name) = &options.to_component {
        asked = asked.to_component(name);
    }
    let format = Format::from(kind);
    let found = convert(&options.input, &options.output, format, &asked)?;
    let json = json!({
        "input": options.input,
        "from": found.to_string(),
        "output": options.output,
        "to": format.to_string(),
    });
    let (from, to) = (options.input.display(), options.output.display());
    options.common.result(
        &json,
        format!("{from} of {found} written to {to} for {format}"),
    )
}

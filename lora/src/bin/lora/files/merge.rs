//! `lora merge`: adapters into a checkpoint.

use crate::files::dtype::Float;
use crate::shell::common::Common;
use crate::shell::output::{Folder, Output, Weighted, is_named_gguf};
use crate::shell::print::note;
use crate::shell::table::{Table, percent, plural};
use anyhow::{Context, Result, bail};
use clap::Args;
use lora::models::is_gguf;
use lora::peft::{
    AdapterConfig, AdapterDir, GgufMergeReport, MergeOptions, MergeReport, combine_files, import,
    merge_checkpoint_with, merge_gguf_with,
};
use lora::{Combination, CombineOptions};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The options.
#[derive(Debug, Args)]
#[command(after_help = "\
Several adapters are added up as `lora combine --rule cat` does, which is exact. Merge those
with DoRA or with modules trained in full one after the other. One tensor at a time is in memory.")]
pub struct Options {
    /// The base: a safetensors file, an index, a folder with either, or a GGUF file
    base: PathBuf,
    /// What the base is: a folder for a folder, a file for a file. Of a GGUF file also a folder as transformers
    /// has it, with the weights in full precision
    out: PathBuf,
    /// An adapter of any format, and how much of it; may be said several times
    #[arg(long, value_name = "PATH[=WEIGHT]", required = true)]
    adapter: Vec<Weighted>,
    /// The dtype of all floats of the result [default: the base's; F32 of a GGUF file]
    #[arg(long, value_enum)]
    dtype: Option<Float>,
    /// Give a head that shares the embedding's weight one of its own, if only one of the two changes
    #[arg(long)]
    untie: bool,
    /// Change an embedding whose weight is also the head's, as PEFT does
    #[arg(long, conflicts_with = "untie")]
    keep_tied: bool,
    /// Accept tensors that the base does not have, or has in another shape: a head, more rows
    #[arg(long)]
    new_tensors: bool,
    /// The base is the residual base: its weights lost what the adapter started with (PiSSA, OLoRA, ..)
    #[arg(long)]
    residual_base: bool,
    /// Whether square weights of linear layers are stored as (in, out)
    #[arg(long, value_name = "BOOL")]
    fan_in_fan_out: Option<bool>,
    /// Whether experts' square weights are stored as (experts, in, out)
    #[arg(long, value_name = "BOOL")]
    transposed_parameters: Option<bool>,
    /// Names of a module's adapted parameters in the order of the model's code
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    parameter_order: Vec<String>,
    /// Replace a prefix of the adapter's paths; may be said several times
    #[arg(long, value_name = "FROM=TO", value_parser = rename)]
    rename: Vec<(String, String)>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    common: Common,
}

fn rename(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').ok_or("it must be FROM=TO")?;
    Ok((parts.0.into(), parts.1.into()))
}

/// Merges.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    options.output.check(&options.out)?;
    let asked = import::Options::new().base(&options.base);
    let read = |adapter: &Weighted| Folder::of(&adapter.path, &asked);
    let folders = options
        .adapter
        .iter()
        .map(read)
        .collect::<Result<Vec<_>>>()?;
    let weights = || options.adapter.iter().map(|adapter| adapter.weight);
    let (one, _made) = match folders.as_slice() {
        [one] => (one.path.clone(), None),
        several => {
            let made = tempfile::tempdir().context("cannot make a temporary folder")?;
            let paths = several.iter().map(|folder| folder.path.as_path());
            let sum = CombineOptions::default();
            combine_files(paths.zip(weights()), made.path(), Combination::Cat, &sum).context(
                "several adapters are added up first; merge one after the other those that cannot be",
            )?;
            (made.path().to_path_buf(), Some(made))
        }
    };
    let weight = if folders.len() == 1 {
        options.adapter[0].weight
    } else {
        1.0
    };
    if weight != 1.0 {
        let saved = AdapterConfig::read(&one)?
            .modules_to_save
            .unwrap_or_default();
        if !saved.is_empty() {
            note(format!(
                "note: {} are merged in full, whatever the weight",
                saved.join(", ")
            ))?;
        }
    }
    let adapter = AdapterDir::new(&one).weight(weight);
    match written(options, adapter)? {
        Written::Safetensors(report) => of_safetensors(options, &report),
        Written::Gguf(report) => of_gguf(options, &report),
    }
}

/// What was written.
enum Written {
    Safetensors(MergeReport),
    Gguf(GgufMergeReport),
}

/// Merges into what the base is: the one place that knows which format goes to which.
fn written(options: &Options, adapter: AdapterDir) -> Result<Written> {
    let (base, out) = (&options.base, &options.out);
    let merging = merging(options);
    if !is_named_gguf(out) {
        let merged = merge_checkpoint_with(base, adapter, out, &merging)?;
        return Ok(Written::Safetensors(merged));
    }
    if options.dtype.is_some() {
        bail!("--dtype is for safetensors: a GGUF file keeps the types of its blocks");
    }
    if base.is_file() && !is_gguf(base) {
        bail!(
            "{} is no GGUF file: name an output that does not end in .gguf",
            base.display()
        );
    }
    let merged = merge_gguf_with(base, adapter, out, &merging)?;
    Ok(Written::Gguf(merged))
}

fn merging(options: &Options) -> MergeOptions {
    let mut merging = MergeOptions::new()
        .copy_files(!options.base.is_file() || is_index(&options.base))
        .untie(options.untie)
        .keep_tied(options.keep_tied)
        .new_tensors(options.new_tensors)
        .residual_base(options.residual_base)
        .parameter_order(options.parameter_order.clone());
    if let Some(dtype) = options.dtype {
        merging = merging.dtype(dtype.into());
    }
    if let Some(transposed) = options.fan_in_fan_out {
        merging = merging.fan_in_fan_out(transposed);
    }
    if let Some(transposed) = options.transposed_parameters {
        merging = merging.transposed_parameters(transposed);
    }
    let renamed = options.rename.iter();
    renamed.fold(merging, |merging, (from, to)| merging.rename(from, to))
}

fn is_index(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".index.json")
}

fn of_safetensors(options: &Options, report: &MergeReport) -> Result<()> {
    let json = json!({
        "changed": report.changed,
        "unchanged": report.unchanged,
        "files": report.files,
        "settings": report.settings,
    });
    let mut lines = vec![format!(
        "{} changed, {} as before; written to {}",
        plural(report.changed.len(), "tensor"),
        report.unchanged,
        options.out.display()
    )];
    let settings = report.settings.iter();
    lines.extend(settings.map(|(key, value)| format!("config.json: {key} is {value}")));
    options.common.result(&json, lines.join("\n"))
}

fn of_gguf(options: &Options, report: &GgufMergeReport) -> Result<()> {
    let mut table = Table::new(&["weight", ">rounding"]);
    for (name, error) in &report.layers {
        table.row([name.clone(), percent(Some(*error))]);
    }
    let layers = report.layers.iter();
    let layers = layers.map(|(name, error)| json!({"name": name, "error": error}));
    let json = json!({
        "changed": layers.collect::<Vec<_>>(),
        "files": report.files,
    });
    let mut lines = table.lines("");
    lines.extend([
        String::new(),
        format!(
            "{} changed; written to {}",
            plural(report.layers.len(), "weight"),
            options.out.display()
        ),
    ]);
    options.common.result(&json, lines.join("\n"))
}

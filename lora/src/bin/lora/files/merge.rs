//! `lora merge`: adapters into a checkpoint.

use crate::files::dtype::Float;
use crate::shell::common::Common;
use crate::shell::output::{Folder, Output, Weighted, is_named_gguf};
use crate::shell::print::note;
use crate::shell::table::{Table, percent, plural};
use anyhow::{Result, bail};
use clap::Args;
use lora::models::is_gguf;
use lora::peft::{
    AdapterConfig, AdapterDir, GgufMergeReport, MergeOptions, MergeReport, import,
    merge_checkpoint_with, merge_gguf_with,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The options.
#[derive(Debug, Args)]
#[command(after_help = "\
Several adapters are merged in the order of --adapter, as PEFT's merge_and_unload does, and the sum is
rounded once. The order matters with DoRA alone: it scales what the adapters before made of a weight. A
module that two adapters trained in full, to different values, is an error. One tensor at a time is in
memory.")]
pub struct Options {
    /// The base: a safetensors file, an index, a GGUF file, or a folder with one of these
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
    let folders = options.adapter.iter().map(read);
    let folders = folders.collect::<Result<Vec<_>>>()?;
    let mut dirs = Vec::new();
    let mut has_dora = false;
    for (folder, adapter) in folders.iter().zip(&options.adapter) {
        let config = AdapterConfig::read(&folder.path)?;
        has_dora |= config.use_dora;
        let saved = config.modules_to_save.unwrap_or_default();
        if adapter.weight != 1.0 && !saved.is_empty() {
            note(format!(
                "note: {} of {} are merged in full, whatever the weight",
                saved.join(", "),
                adapter.path.display()
            ))?;
        }
        dirs.push(AdapterDir::new(&folder.path).weight(adapter.weight));
    }
    let Some(last) = dirs.pop() else {
        bail!("name an adapter: --adapter PATH");
    };
    let order = order(&options.adapter, has_dora);
    match written(options, dirs, last)? {
        Written::Safetensors(report) => of_safetensors(options, &report, order),
        Written::Gguf(report) => of_gguf(options, &report, order),
    }
}

/// What to say of the order of several adapters.
fn order(adapters: &[Weighted], has_dora: bool) -> Option<String> {
    let names = adapters.iter().map(Weighted::to_string);
    let names = names.collect::<Vec<_>>().join(", then ");
    let why = match has_dora {
        true => ": with DoRA, another order gives another result",
        false => "",
    };
    (adapters.len() > 1).then(|| format!("merged in this order: {names}{why}"))
}

/// What was written.
enum Written {
    Safetensors(MergeReport),
    Gguf(GgufMergeReport),
}

/// Merges into what the base is: the one place that knows which format goes to which.
fn written(options: &Options, first: Vec<AdapterDir>, adapter: AdapterDir) -> Result<Written> {
    let (base, out) = (&options.base, &options.out);
    let merging = merging(options).first(first);
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

/// The adapters in their order, for scripts.
fn adapters(options: &Options) -> Vec<Value> {
    let adapters = options.adapter.iter();
    let adapters = adapters.map(|one| json!({"path": one.path, "weight": one.weight}));
    adapters.collect()
}

fn of_safetensors(options: &Options, report: &MergeReport, order: Option<String>) -> Result<()> {
    let json = json!({
        "adapters": adapters(options),
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
    lines.extend(order);
    options.common.result(&json, lines.join("\n"))
}

fn of_gguf(options: &Options, report: &GgufMergeReport, order: Option<String>) -> Result<()> {
    let mut table = Table::new(&["weight", ">rounding"]);
    for (name, error) in &report.layers {
        table.row([name.clone(), percent(Some(*error))]);
    }
    let layers = report.layers.iter();
    let layers = layers.map(|(name, error)| json!({"name": name, "error": error}));
    let json = json!({
        "adapters": adapters(options),
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
    lines.extend(order);
    options.common.result(&json, lines.join("\n"))
}

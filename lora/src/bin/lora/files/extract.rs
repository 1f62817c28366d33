//! `lora extract`: an adapter from two checkpoints.

use crate::files::dtype::Float;
use crate::files::rank::Rank;
use crate::shell::common::Common;
use crate::shell::output::Output;
use crate::shell::table::{Table, number, optional, percent, plural, shape};
use anyhow::Result;
use clap::Args;
use lora::peft::{ExtractOptions, ExtractReport, RankChoice, extract};
use std::path::PathBuf;

/// The options.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --rank and --energy the rank is 16. The report tells for each layer, and for all that differs, the
share that the adapter lacks: the Frobenius norm of the rest over that of the difference. A GGUF file is
dequantised: what its blocks rounded is part of the difference.")]
pub struct Options {
    /// The base: a safetensors file, an index, a GGUF file, or a folder with one of these
    base: PathBuf,
    /// The checkpoint that was tuned from it, in any of these formats
    tuned: PathBuf,
    /// The folder to write, in PEFT's format
    out: PathBuf,
    #[command(flatten)]
    rank: Rank,
    /// Layers that get an update of low rank, by the ends of their paths: q_proj,v_proj. One with a
    /// `*`, `|` or `(` is a regular expression for whole paths [default: all linear layers and
    /// convolutions that differ]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    target_modules: Vec<String>,
    /// Report biases, norms and embeddings that differ, and do not put them into the adapter
    #[arg(long)]
    leave_rest: bool,
    /// The dtype of the adapter's matrices
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Float,
    /// Whether linear layers hold their weights as (in, out) [default: true for GPT-2, by config.json]
    #[arg(long, value_name = "BOOL")]
    fan_in_fan_out: Option<bool>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    common: Common,
}

/// Makes the adapter.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    options.output.check(&options.out)?;
    let rank = options.rank.choice().unwrap_or(RankChoice::Rank(16));
    let mut asked = ExtractOptions::new()
        .rank(rank)
        .dtype(options.dtype.into())
        .rest(!options.leave_rest);
    match options.target_modules.as_slice() {
        [] => {}
        [one] if one.contains(['*', '|', '(']) || one.eq_ignore_ascii_case("all-linear") => {
            asked = asked.target_modules(one.as_str());
        }
        names => asked = asked.target_modules(names.to_vec()),
    }
    asked.fan_in_fan_out = options.fan_in_fan_out;
    let report = extract(&options.base, &options.tuned, &options.out, &asked)?;
    options
        .common
        .result(&report, shown(options, &report).join("\n"))
}

fn shown(options: &Options, report: &ExtractReport) -> Vec<String> {
    let mut table = Table::new(&["layer", "shape", ">rank", ">norm", ">remains"]);
    for layer in &report.layers {
        table.row([
            layer.name.clone(),
            shape(&layer.shape),
            layer.rank.to_string(),
            number(layer.norm),
            percent(Some(layer.error)),
        ]);
    }
    let mut lines = table.lines("");
    let mut list = |title: &str, names: Vec<String>| {
        if !names.is_empty() {
            lines.extend([String::new(), title.to_string()]);
            lines.extend(names.into_iter().map(|name| format!("  {name}")));
        }
    };
    list("kept in full", report.modules.clone());
    list("with a bias of their own", report.biases.clone());
    let left = report.left.iter();
    let left = left.map(|left| {
        format!(
            "{}  norm of the difference {}",
            left.name,
            optional(left.norm)
        )
    });
    list("differs and is left out", left.collect());
    lines.extend([
        String::new(),
        format!(
            "{} written to {}; {} are the same in both; {} of the difference remains",
            plural(report.layers.len(), "layer"),
            options.out.display(),
            plural(report.unchanged, "tensor"),
            percent(Some(report.error))
        ),
    ]);
    lines
}

//! `lora diff`: how two adapters or two checkpoints differ.

use crate::files::inspect::shown;
use crate::shell::common::Common;
use crate::shell::end::Differ;
use crate::shell::heat;
use crate::shell::table::{Table, count, optional, percent, plural};
use anyhow::Result;
use clap::Args;
use lora::peft::{AdapterDiff, CheckpointDiff, Diff, SettingDiff, TensorDiff, diff};
use serde_json::Value;
use std::path::PathBuf;

/// The options.
#[derive(Debug, Args)]
#[command(after_help = "\
Adapters are compared by their updates s·B·A: neither the rank nor the factors matter, nor which tool
wrote the files. A relative difference is the Frobenius norm of the difference over that of A.
Exit code: 0, whether or not the two differ; with --exit-code 1 if they do, as git diff has it.")]
pub struct Options {
    /// The first adapter or checkpoint, as for `lora inspect`
    a: PathBuf,
    /// The second, of the same kind
    b: PathBuf,
    /// End with 1 if the two differ
    #[arg(long)]
    exit_code: bool,
    /// Relative differences up to this are none
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    tolerance: f64,
    #[command(flatten)]
    common: Common,
}

/// Compares the two.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    let found = diff(&options.a, &options.b)?;
    let mut lines = vec![
        format!("A  {}", options.a.display()),
        format!("B  {}", options.b.display()),
    ];
    let same = found.is_within(options.tolerance);
    match &found {
        Diff::Adapters(diff) => adapters(diff, options.tolerance, &mut lines),
        Diff::Checkpoints(diff) => checkpoints(diff, options.tolerance, &mut lines),
        _ => {}
    }
    if same {
        lines.extend([String::new(), "the two do not differ".into()]);
    }
    options.common.result(&found, lines.join("\n"))?;
    match options.exit_code && !same {
        true => Err(Differ.into()),
        false => Ok(()),
    }
}

fn adapters(diff: &AdapterDiff, tolerance: f64, lines: &mut Vec<String>) {
    settings(&diff.settings, lines);
    only("A", &diff.only_first, lines);
    only("B", &diff.only_second, lines);
    let differing: Vec<_> = diff
        .layers
        .iter()
        .filter(|layer| layer.relative.is_none_or(|relative| relative > tolerance))
        .collect();
    lines.push(String::new());
    lines.push(format!(
        "{} of {} differ; relative difference of all updates {}",
        count(differing.len() as u64),
        plural(diff.layers.len(), "update"),
        percent(diff.relative)
    ));
    let heads = [
        "layer",
        ">rank A",
        ">rank B",
        ">norm A",
        ">norm B",
        ">norm of A−B",
        ">relative",
    ];
    let mut table = Table::new(&heads);
    for layer in &differing {
        table.row([
            layer.name.clone(),
            layer.ranks[0].to_string(),
            layer.ranks[1].to_string(),
            optional(layer.norms[0]),
            optional(layer.norms[1]),
            optional(layer.norm),
            percent(layer.relative),
        ]);
    }
    if !differing.is_empty() {
        lines.extend(table.lines(""));
    }
    if differing.len() > 1 {
        let shares = diff.layers.iter();
        let shares = shares.map(|layer| {
            (
                layer.name.as_str(),
                layer.relative.filter(|r| r.is_finite()),
            )
        });
        lines.extend([String::new(), "relative difference by layer".into()]);
        lines.extend(
            heat::lines(&shares.collect::<Vec<_>>())
                .into_iter()
                .map(|line| format!("  {line}")),
        );
    }
    tensors("beside the updates", &diff.others, tolerance, lines);
}

fn checkpoints(diff: &CheckpointDiff, tolerance: f64, lines: &mut Vec<String>) {
    settings(&diff.settings, lines);
    only("A", &diff.only_first, lines);
    only("B", &diff.only_second, lines);
    let title = format!(
        "relative difference of all tensors {}",
        percent(diff.relative)
    );
    tensors(&title, &diff.tensors, tolerance, lines);
}

fn settings(settings: &[SettingDiff], lines: &mut Vec<String>) {
    if settings.is_empty() {
        return;
    }
    let mut table = Table::new(&["setting", "A", "B"]);
    let value = |value: &Option<Value>| value.as_ref().map_or("absent".into(), shown);
    for setting in settings {
        table.row([
            setting.key.clone(),
            value(&setting.first),
            value(&setting.second),
        ]);
    }
    lines.push(String::new());
    lines.extend(table.lines(""));
}

fn only(which: &str, names: &[String], lines: &mut Vec<String>) {
    if !names.is_empty() {
        lines.extend([String::new(), format!("only in {which}")]);
        lines.extend(names.iter().map(|name| format!("  {name}")));
    }
}

fn tensors(title: &str, all: &[TensorDiff], tolerance: f64, lines: &mut Vec<String>) {
    if all.is_empty() {
        return;
    }
    let differs = |tensor: &&TensorDiff| {
        let near = tensor
            .relative
            .is_some_and(|relative| relative <= tolerance);
        tensor.first != tensor.second || !near
    };
    let differing: Vec<&TensorDiff> = all.iter().filter(differs).collect();
    let (some, of) = (count(differing.len() as u64), plural(all.len(), "tensor"));
    lines.extend([String::new(), format!("{some} of {of} differ; {title}")]);
    if differing.is_empty() {
        return;
    }
    let mut table = Table::new(&["tensor", "A", "B", ">largest", ">relative"]);
    for tensor in differing {
        table.row([
            tensor.name.clone(),
            tensor.first.clone(),
            if tensor.second == tensor.first {
                "same".into()
            } else {
                tensor.second.clone()
            },
            optional(tensor.largest),
            percent(tensor.relative),
        ]);
    }
    lines.extend(table.lines(""));
}

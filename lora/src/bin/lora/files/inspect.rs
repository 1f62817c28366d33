//! `lora inspect`: what an adapter or a checkpoint holds.

use crate::shell::common::Common;
use crate::shell::heat;
use crate::shell::table::{Table, bytes, count, number, optional, plural, shape};
use anyhow::Result;
use clap::Args;
use lora::peft::{
    AdapterReport, CheckpointReport, InspectOptions, Inspection, TensorReport, inspect_with,
};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// The options.
#[derive(Debug, Args)]
pub struct Options {
    /// An adapter: a folder or file of PEFT, mlx-lm, diffusers, kohya or llama.cpp. Or a checkpoint:
    /// safetensors in one file, in shards or in a folder, or GGUF
    path: PathBuf,
    /// Read the headers alone: sizes and settings without norms and without a look at the values
    #[arg(long)]
    headers: bool,
    /// List every tensor of a checkpoint, not one line for those that differ only in their numbers
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    common: Common,
}

/// Looks into the file.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    let read = InspectOptions::new().values(!options.headers);
    let found = inspect_with(&options.path, &read)?;
    let lines = match &found {
        Inspection::Adapter(report) => adapter(report),
        Inspection::Checkpoint(report) => checkpoint(report, options.all),
        _ => Vec::new(),
    };
    options.common.result(&found, lines.join("\n"))
}

fn adapter(report: &AdapterReport) -> Vec<String> {
    let mut lines = vec![
        format!("{}: an adapter of {}", report.path.display(), report.format),
        format!(
            "{}, {} parameters, {}{}",
            plural(report.layers.len(), "layer"),
            count(report.parameters),
            bytes(report.bytes),
            match report.norm {
                Some(norm) => format!("; norm of the update {}", number(norm)),
                None => String::new(),
            }
        ),
    ];
    suspicious(&report.suspicious, &mut lines);
    settings(&report.settings, &mut lines);
    if !report.layers.is_empty() {
        lines.push(String::new());
        lines.extend(layers(report));
    }
    if report.layers.len() > 1 && report.layers.iter().any(|layer| layer.update.is_some()) {
        let norms = report.layers.iter();
        let norms = norms.map(|layer| (layer.name.as_str(), layer.update.map(|u| u.norm)));
        lines.extend([String::new(), "norm of the update by layer".into()]);
        lines.extend(
            heat::lines(&norms.collect::<Vec<_>>())
                .into_iter()
                .map(|line| format!("  {line}")),
        );
    }
    if !report.others.is_empty() {
        lines.extend([String::new(), "beside the updates".into()]);
        lines.extend(tensors(report.others.iter()));
    }
    lines
}

fn layers(report: &AdapterReport) -> Vec<String> {
    let heads = [
        "layer",
        "out × in",
        ">rank",
        ">scaling",
        "dtype",
        ">norm",
        ">largest",
        ">effective",
        ">99 %",
    ];
    let mut table = Table::new(&heads);
    for layer in &report.layers {
        let of =
            |value: fn(&lora::peft::Spectrum) -> f64| optional(layer.update.as_ref().map(value));
        table.row([
            layer.name.clone(),
            match layer.experts {
                1 => format!("{} × {}", layer.outputs, layer.inputs),
                experts => format!("{experts} × ({} × {})", layer.outputs, layer.inputs),
            },
            layer.rank.to_string(),
            number(layer.scaling),
            match layer.dora {
                true => format!("{}, DoRA", layer.dtype),
                false => layer.dtype.clone(),
            },
            of(|update| update.norm),
            of(|update| update.largest),
            of(|update| update.effective_rank),
            layer
                .update
                .map_or("-".into(), |update| update.rank_99.to_string()),
        ]);
    }
    table.lines("")
}

fn checkpoint(report: &CheckpointReport, all: bool) -> Vec<String> {
    let dtypes = report.dtypes.iter().map(|(dtype, share)| {
        format!(
            "{} of {dtype} ({})",
            bytes(share.bytes),
            plural(share.tensors, "tensor")
        )
    });
    let mut lines = vec![
        format!(
            "{}: a checkpoint, {} in {}",
            report.path.display(),
            report.format,
            plural(report.files, "file")
        ),
        format!(
            "{}, {} parameters, {}: {}",
            plural(report.tensors.len(), "tensor"),
            count(report.parameters),
            bytes(report.bytes),
            dtypes.collect::<Vec<_>>().join(", ")
        ),
    ];
    suspicious(&report.suspicious, &mut lines);
    settings(&report.settings, &mut lines);
    lines.push(String::new());
    lines.extend(match all {
        true => tensors(report.tensors.iter()),
        false => groups(&report.tensors),
    });
    lines
}

fn tensors<'a>(reports: impl Iterator<Item = &'a TensorReport>) -> Vec<String> {
    let mut table = Table::new(&["tensor", "shape", "dtype", ">bytes", ">norm", ">largest"]);
    for tensor in reports {
        table.row([
            tensor.name.clone(),
            shape(&tensor.shape),
            tensor.dtype.clone(),
            bytes(tensor.bytes),
            optional(tensor.norm),
            optional(tensor.largest),
        ]);
    }
    table.lines("")
}

/// A name with `*` for each number.
fn pattern(name: &str) -> String {
    let is_number = |segment: &str| segment.bytes().all(|byte| byte.is_ascii_digit());
    let segments = name.split('.').map(|segment| match is_number(segment) {
        true => "*",
        false => segment,
    });
    segments.collect::<Vec<_>>().join(".")
}

/// One line for tensors whose names differ only in their numbers.
fn groups(reports: &[TensorReport]) -> Vec<String> {
    let mut groups: Vec<(String, Vec<&TensorReport>)> = Vec::new();
    for tensor in reports {
        let name = pattern(&tensor.name);
        match groups.iter_mut().find(|(known, of)| {
            *known == name && (&of[0].shape, &of[0].dtype) == (&tensor.shape, &tensor.dtype)
        }) {
            Some((_, of)) => of.push(tensor),
            None => groups.push((name, vec![tensor])),
        }
    }
    let mut table = Table::new(&[
        "tensors", ">count", "shape", "dtype", ">bytes", ">norm", ">largest",
    ]);
    for (name, of) in groups {
        let largest = of
            .iter()
            .filter_map(|tensor| tensor.largest)
            .reduce(f64::max);
        let norms: Option<Vec<f64>> = of.iter().map(|tensor| tensor.norm).collect();
        let energy = norms.map(|norms| norms.iter().map(|norm| norm * norm).sum::<f64>());
        table.row([
            if of.len() == 1 {
                of[0].name.clone()
            } else {
                name
            },
            of.len().to_string(),
            shape(&of[0].shape),
            of[0].dtype.clone(),
            bytes(of.iter().map(|tensor| tensor.bytes).sum()),
            optional(energy.map(f64::sqrt)),
            optional(largest),
        ]);
    }
    table.lines("")
}

fn suspicious(found: &[String], lines: &mut Vec<String>) {
    if found.is_empty() {
        return;
    }
    lines.extend([String::new(), "suspicious".into()]);
    lines.extend(found.iter().map(|problem| format!("  - {problem}")));
}

/// The settings that say something.
fn settings(settings: &Map<String, Value>, lines: &mut Vec<String>) {
    // What every file of PEFT has.
    const COMMON: [(&str, &str); 7] = [
        ("bias", "\"none\""),
        ("peft_type", "\"LORA\""),
        ("inference_mode", "true"),
        ("init_lora_weights", "true"),
        ("megatron_core", "\"megatron.core\""),
        ("qalora_group_size", "16"),
        ("lora_dropout", "0.0"),
    ];
    let mut table = Table::list();
    let mut is_empty = true;
    for (key, value) in settings {
        let text = value.to_string();
        let says_nothing = ["null", "false", "[]", "{}", "\"\""].contains(&text.as_str())
            || COMMON.contains(&(key, &text));
        if !says_nothing {
            table.row([key.clone(), shown(value)]);
            is_empty = false;
        }
    }
    if !is_empty {
        lines.extend([String::new(), "settings".into()]);
        lines.extend(table.lines("  "));
    }
}

/// A value in short.
pub fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let names = items.iter().map(|item| match item {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            names.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    match text.char_indices().nth(100) {
        Some((end, _)) => match value {
            Value::Array(items) => format!("{}.. ({} in all)", &text[..end], items.len()),
            _ => format!("{}..", &text[..end]),
        },
        None => text,
    }
}

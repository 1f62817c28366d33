//! Runs the models that compile: a program for each, from a file of `../runs` and what they share in
//! `../runner`. A program of its own can fail to compile, panic or hang without the others.

use crate::check::errors;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a model may run.
const LIMIT: Duration = Duration::from_secs(120);

/// The stages, with what passing says, in the order of the table.
const STAGES: [(&str, &str); 10] = [
    ("compiles", "the run compiles for the LoRA model"),
    ("base", "the base model runs"),
    (
        "adapted",
        "a fresh adapter changes nothing, a random one does",
    ),
    ("reached", "every adapter gets a gradient"),
    ("gradients", "gradients agree with differences of the loss"),
    ("merged", "merged and unmerged give the same"),
    ("back", "the merged base model gives the same"),
    ("paths", "paths are the checkpoint's names"),
    (
        "layers",
        "each layer that takes an adapter is at its checkpoint's name",
    ),
    ("peft", "PEFT's adapter gives PEFT's outputs"),
];

/// What became of the run of a group: nothing, or what went wrong, by stage.
struct Ran {
    group: String,
    stages: BTreeMap<String, Option<String>>,
}

impl Ran {
    fn failed(group: &str, stage: &str, error: String) -> Self {
        let stages = BTreeMap::from([(stage.to_string(), Some(error))]);
        let group = group.to_string();
        Self { group, stages }
    }
}

/// Builds and runs all groups that have a run, and prints a table.
pub fn run<'a>(workspace: &Workspace, groups: impl Iterator<Item = &'a str>) -> Result<()> {
    let room = Path::new(env!("CARGO_MANIFEST_DIR"));
    let groups: Vec<_> = groups.filter(|group| file(room, group).exists()).collect();
    if groups.is_empty() {
        return Ok(());
    }
    for group in &groups {
        program(workspace, room, group)?;
    }
    let mut command = workspace.cargo("build");
    for group in &groups {
        command.args(["-p", &format!("run_{group}")]);
    }
    let mut failures = errors(command, "run_")?;
    let ran = groups
        .into_iter()
        .map(|group| match failures.remove(group) {
            Some(errors) => {
                let errors: Vec<_> = errors.into_iter().map(|error| error.rendered).collect();
                Ok(Ran::failed(group, "compiles", errors.join("\n")))
            }
            None => start(workspace, group),
        });
    let ran: Vec<_> = ran.collect::<Result<_>>()?;
    report(&ran);
    save(&ran, workspace)
}

/// As [`run`], for the groups of the last call or some of them.
pub fn again(workspace: &Workspace, only: &[String]) -> Result<()> {
    let text = fs::read_to_string(file_of(workspace)).context("nothing ran before")?;
    let before: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text)?;
    let groups = before
        .keys()
        .filter(|group| only.is_empty() || only.contains(group));
    run(workspace, groups.map(String::as_str))
}

fn file(room: &Path, group: &str) -> PathBuf {
    room.join("runs").join(format!("{group}.rs"))
}

/// Writes the program of a group.
fn program(workspace: &Workspace, room: &Path, group: &str) -> Result<()> {
    let module = |name: &str, file: &Path| format!("#[path = {file:?}]\nmod {name};\n");
    let mut text = "#![allow(warnings)]\npub use runner::prelude;\n\n".to_string();
    text += &module("runs", &file(room, group));
    let mut calls = "        runner::check::<runs::Run>(report);\n".to_string();
    let peft = room.join("runs/peft").join(format!("{group}.rs"));
    if peft.exists() {
        text += &module("adapters", &peft);
        let fixture = room.join("fixtures").join(match group {
            "stable_diffusion" => "unet",
            group => group,
        });
        calls += &format!("        runner::peft::<adapters::Run>(report, {fixture:?});\n");
    }
    text += &format!("\nfn main() {{\n    runner::main(|report| {{\n{calls}    }});\n}}\n");
    workspace.write_program(group, &text)
}

/// Runs the program of a group, which prints a line of JSON.
fn start(workspace: &Workspace, group: &str) -> Result<Ran> {
    let program = workspace.root.join(format!("target/debug/run_{group}"));
    let mut command = Command::new(&program);
    // candle adds the stack to its errors otherwise.
    command
        .env_remove("RUST_BACKTRACE")
        .env("RUST_LIB_BACKTRACE", "0")
        .stdout(Stdio::piped());
    let mut child = match command.stderr(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) => return Ok(Ran::failed(group, "compiles", error.to_string())),
    };
    let Some(output) = wait(&mut child)? else {
        return Ok(Ran::failed(group, "base", format!("not done in {LIMIT:?}")));
    };
    match serde_json::from_str::<BTreeMap<String, Option<String>>>(&output) {
        Ok(mut stages) => {
            stages.insert("compiles".into(), None);
            let group = group.to_string();
            Ok(Ran { group, stages })
        }
        Err(_) => Ok(Ran::failed(group, "base", "the program crashes".into())),
    }
}

/// What a program printed, if it ended in time.
fn wait(child: &mut Child) -> Result<Option<String>> {
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut output)?;
    }
    Ok(Some(output))
}

/// The table of counts, then what is missing, by name and reason.
fn report(all: &[Ran]) {
    println!("{} models run at a tiny size", all.len());
    for (stage, passes) in STAGES {
        let tried = all
            .iter()
            .filter(|ran| ran.stages.contains_key(stage) || stage == "compiles");
        let tried: Vec<_> = tried.collect();
        let failing = tried
            .iter()
            .filter(|ran| matches!(ran.stages.get(stage), Some(Some(_))));
        println!(
            "  {passes}: {} of {}",
            tried.len() - failing.count(),
            tried.len()
        );
    }
    let right = all.iter().filter(|ran| {
        ["reached", "gradients", "merged", "back"]
            .iter()
            .all(|&stage| ran.stages.get(stage) == Some(&None))
    });
    println!("  all but paths: {} of {}", right.count(), all.len());
    for (stage, passes) in STAGES {
        for ran in all {
            if let Some(Some(reason)) = ran.stages.get(stage) {
                println!("not \"{passes}\": {}: {}", ran.group, reason.trim());
            }
        }
    }
}

/// Where a file says what became of all, for programs.
fn file_of(workspace: &Workspace) -> PathBuf {
    workspace.root.join("runs.json")
}

/// Writes that file.
fn save(all: &[Ran], workspace: &Workspace) -> Result<()> {
    let file = file_of(workspace);
    // What ran before stays: a later call may run it again.
    let before = fs::read_to_string(&file).unwrap_or_default();
    let before: serde_json::Value = serde_json::from_str(&before).unwrap_or_default();
    let mut known = before.as_object().cloned().unwrap_or_default();
    for ran in all {
        known.insert(ran.group.clone(), serde_json::to_value(&ran.stages)?);
    }
    let text = serde_json::to_string_pretty(&known)?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

//! `cargo check` over all crates, and its messages.

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// An error of the compiler.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The message as a user sees it.
    pub rendered: String,
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
}

impl Failure {
    /// The type whose field the message tells the user to skip, by its last name.
    pub fn skip(&self) -> Option<&str> {
        if !self.rendered.contains("`#[lora(skip)]`") {
            return None;
        }
        let name = self.rendered.split('`').nth(1)?;
        let end = name.find('<').unwrap_or(name.len());
        name[..end].rsplit("::").next()
    }
}

#[derive(Deserialize)]
struct Line {
    reason: String,
    target: Option<Target>,
    message: Option<Message>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Message {
    level: String,
    rendered: Option<String>,
    spans: Vec<Span>,
}

#[derive(Deserialize)]
struct Span {
    file_name: String,
    line_start: usize,
    column_start: usize,
    is_primary: bool,
}

/// The errors of each crate that has some.
pub fn check(workspace: &Workspace, names: &[String]) -> Result<BTreeMap<String, Vec<Failure>>> {
    let mut command = workspace.cargo("check");
    for name in names {
        command.args(["-p", &format!("zoo_{name}")]);
    }
    errors(command, "zoo_")
}

/// The errors of each crate that has some, by its name behind the prefix.
pub fn errors(mut command: Command, prefix: &str) -> Result<BTreeMap<String, Vec<Failure>>> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !stdout.contains("\"build-finished\"") {
        bail!("cargo did not run");
    }
    let mut failures: BTreeMap<String, Vec<Failure>> = BTreeMap::new();
    for line in stdout.lines() {
        let Ok(line) = serde_json::from_str::<Line>(line) else {
            continue;
        };
        let (Some(target), Some(message)) = (line.target, line.message) else {
            continue;
        };
        let Some(name) = target.name.strip_prefix(prefix) else {
            continue;
        };
        if line.reason == "compiler-message" && message.level == "error" {
            let all = failures.entry(name.to_string()).or_default();
            // Cargo shows a message once, however often the compiler gives it.
            let is_new = |new: &Failure| all.iter().all(|old| old.rendered != new.rendered);
            let new = failure(message).filter(is_new);
            all.extend(new);
        }
    }
    Ok(failures)
}

fn failure(message: Message) -> Option<Failure> {
    // "aborting due to 3 previous errors" has no place.
    let span = message.spans.iter().find(|span| span.is_primary)?;
    Some(Failure {
        rendered: message.rendered.unwrap_or_default(),
        file: PathBuf::from(&span.file_name),
        line: span.line_start,
        column: span.column_start,
    })
}

//! `lora train`: what it learns, how it is told, what it refuses, how it stops and goes on.

mod augment;
mod files;
mod kinds;
mod planned;
#[cfg(feature = "mpi")]
mod ranks;
mod refused;
mod settings;
#[cfg(unix)]
mod stopped;

use crate::{lora, text};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder of a test.
pub struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    /// Writes a file and gives its name.
    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), text).unwrap();
        self.name(name)
    }

    /// Writes a file of records.
    fn jsonl(&self, name: &str, records: impl IntoIterator<Item = Value>) -> String {
        let lines = records.into_iter().map(|record| record.to_string() + "\n");
        self.write(name, lines.collect::<String>())
    }

    /// The line of a run with these arguments, which are parted by spaces; a name behind `@` is in this
    /// folder.
    fn line(&self, line: &str) -> Vec<String> {
        let mut args = vec!["train".to_string(), "--threads".into(), "1".into()];
        args.extend(
            line.split_whitespace()
                .map(|arg| match arg.strip_prefix('@') {
                    Some(name) => self.name(name),
                    None => arg.into(),
                }),
        );
        args
    }

    /// The JSON that a run prints.
    fn train(&self, line: &str) -> Value {
        let args = self.line(&format!("--json {line}"));
        let output = lora(args.iter().map(String::as_str)).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{line}: {err}");
        assert_eq!(out.lines().count(), 1, "{line}: {out}");
        serde_json::from_str(&out).unwrap()
    }

    /// What a run prints.
    fn shown(&self, line: &str) -> String {
        let args = self.line(line);
        let output = lora(args.iter().map(String::as_str)).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The error of a run, without the name of this folder.
    fn refused(&self, line: &str) -> String {
        let args = self.line(line);
        let output = lora(args.iter().map(String::as_str)).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {error}");
        let dir = format!("{}/", self.dir.path().display());
        let error = error.replace(&dir, "@").replace(&dir[..dir.len() - 1], "@");
        let error = error.trim_end();
        error.strip_prefix("error: ").unwrap_or(error).into()
    }

    /// A file of a run, as JSON.
    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }
}

/// The small language model of the repository.
fn bard() -> String {
    repository("examples/data/text/bard")
}

fn repository(path: &str) -> String {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = crate_dir.parent().unwrap().join(path);
    dir.to_str().unwrap().into()
}

/// The mean losses of a run's epochs: the first, the last.
fn losses(report: &Value) -> (f64, f64) {
    let losses = report["losses"].as_array().unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    (number(&losses[0]), number(&losses[losses.len() - 1]))
}

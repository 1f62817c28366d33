//! The workspace under `target/zoo`: a crate a model.

use crate::sources::Group;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder of generated crates that share dependencies and build folder.
pub struct Workspace {
    pub root: PathBuf,
    /// The project's own folder.
    project: PathBuf,
}

const MANIFEST: &str = r#"[workspace]
resolver = "3"
members = ["models/*", "runs/*"]

# Models are tiny where they run: what computes is optimised, the models are not.
[profile.dev]
debug = false
opt-level = 0

[profile.dev.package]
candle-core = { opt-level = 3 }
candle-nn = { opt-level = 2 }
gemm = { opt-level = 3 }
gemm-common = { opt-level = 3 }
gemm-f32 = { opt-level = 3 }
gemm-f64 = { opt-level = 3 }
lora-candle = { opt-level = 2 }
"#;

/// What the programs that run models need, beside the model.
const RUNNER: &str = r#"anyhow = "1.0"
candle-core = "0.11.1"
candle-nn = "0.11.1"
serde_json = "1.0"
tempfile = "3.27"
"#;

impl Workspace {
    pub fn create(project: &Path) -> Result<Self> {
        let root = project.join("target/zoo");
        fs::create_dir_all(root.join("models"))?;
        write(&root.join("Cargo.toml"), MANIFEST)?;
        // The versions that the project is built and tested with.
        let lock = root.join("Cargo.lock");
        if !lock.exists() {
            fs::copy(project.join("Cargo.lock"), &lock).context("cannot copy Cargo.lock")?;
        }
        let project = project.to_path_buf();
        let workspace = Self { root, project };
        workspace.write_runner()?;
        Ok(workspace)
    }

    /// The folder of a model's crate.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.root.join("models").join(name)
    }

    /// Writes a model's crate.
    pub fn write(&self, group: &Group, files: &BTreeMap<PathBuf, String>) -> Result<()> {
        let folder = self.folder(&group.name);
        let lora = self.project.join("lora");
        let manifest = format!(
            r#"[package]
name = "zoo_{}"
version = "0.0.0"
edition = "2021"

[features]
cuda = []
metal = []
flash-attn = []
accelerate = []
mkl = []

[dependencies]
lora = {{ package = "lora-candle", path = "{}", default-features = false }}
candle = {{ package = "candle-core", version = "0.11.1" }}
candle-nn = "0.11.1"
byteorder = "1.4"
fancy-regex = "0.19"
num-traits = "0.2"
rand = "0.9"
rayon = "1.7"
serde = {{ version = "1.0", features = ["derive"] }}
serde_json = "1.0"
serde_plain = "1.0"
tracing = "0.1"
"#,
            group.name,
            lora.display()
        );
        write(&folder.join("Cargo.toml"), &manifest)?;
        for (path, text) in files {
            write(&folder.join("src").join(path), text)?;
        }
        write(&folder.join("src/lib.rs"), &root(group, files))
    }

    /// Writes the crate that the programs share, around the project's sources.
    fn write_runner(&self) -> Result<()> {
        let lib = self.project.join("tests/zoo/runner/lib.rs");
        let lib = format!("[lib]\npath = {lib:?}\n\n");
        let manifest = self.manifest("runner", &lib, "");
        write(&self.root.join("runs/runner/Cargo.toml"), &manifest)
    }

    /// Writes the program that runs a model.
    pub fn write_program(&self, group: &str, text: &str) -> Result<()> {
        let folder = self.root.join("runs").join(group);
        let model = format!(
            "runner = {{ path = \"../runner\" }}\nzoo_{group} = {{ path = {:?} }}\n",
            self.folder(group)
        );
        let manifest = self.manifest(&format!("run_{group}"), "", &model);
        write(&folder.join("Cargo.toml"), &manifest)?;
        write(&folder.join("src/main.rs"), text)
    }

    fn manifest(&self, name: &str, target: &str, more: &str) -> String {
        let lora = self.project.join("lora");
        format!(
            "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n{target}\
             [dependencies]\nlora = {{ package = \"lora-candle\", path = {lora:?}, \
             default-features = false }}\n{RUNNER}{more}"
        )
    }

    /// A command of cargo's here, whose messages are JSON and which goes on after errors.
    pub fn cargo(&self, what: &str) -> Command {
        let mut command = Command::new("cargo");
        command
            .args([what, "--keep-going", "--message-format=json"])
            .current_dir(&self.root);
        command.env("CARGO_TARGET_DIR", self.root.join("target"));
        command
    }
}

/// The crate's root, with the modules that the group has.
fn root(group: &Group, files: &BTreeMap<PathBuf, String>) -> String {
    let module = |path: &Path, room: &str| {
        let below = path.strip_prefix(room).ok()?;
        let first = below.iter().next()?.to_str()?;
        Some(first.trim_end_matches(".rs").to_string())
    };
    let list = |names: Vec<String>| {
        let mut names: Vec<_> = names
            .into_iter()
            .map(|name| format!("pub mod {name};"))
            .collect();
        names.sort();
        names.dedup();
        names.join(" ")
    };
    let is_model = |path: &Path| path.starts_with("models");
    let rooms = group
        .files
        .iter()
        .filter(|path| !is_model(path))
        .filter_map(|p| module(p, ""));
    let models = group
        .files
        .iter()
        .filter(|path| is_model(path))
        .filter_map(|p| module(p, "models"));
    let has = |text: &str| files.values().any(|file| file.contains(text));
    let macros = has("crate::serde_default_fn") && !has("macro_rules! serde_default_fn");
    format!(
        "#![allow(warnings)]\n{}\npub mod models {{ {} }}\n{}",
        list(rooms.collect()),
        list(models.collect()),
        if macros { SERDE_DEFAULT } else { "" }
    )
}

/// A macro of the crate's root.
const SERDE_DEFAULT: &str = "#[macro_export]\nmacro_rules! serde_default_fn { \
    ($t:ty, $name:ident, $v:expr) => { fn $name() -> $t { $v } } }\n";

/// Writes a file if its text is another: cargo then rebuilds what changed.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

//! The source of candle-transformers, as cargo has unpacked it, cut into groups of one model each.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The source tree of the crate.
pub struct Sources {
    root: PathBuf,
}

/// One model, and the files that it needs.
pub struct Group {
    pub name: String,
    /// The files, relative to `src`.
    pub files: BTreeSet<PathBuf>,
}

impl Sources {
    /// Asks cargo where the crate lies. The workspace depends on it, so cargo has it unpacked.
    pub fn find() -> Result<Self> {
        let output = Command::new("cargo")
            .args(["metadata", "--format-version=1", "--locked"])
            .output()
            .context("cannot run `cargo metadata`")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let packages = metadata["packages"].as_array().into_iter().flatten();
        let mut packages = packages.filter(|package| package["name"] == "candle-transformers");
        let manifest = packages
            .next()
            .and_then(|package| package["manifest_path"].as_str());
        let manifest = manifest.context("candle-transformers is no dependency of the workspace")?;
        let root = Path::new(manifest)
            .parent()
            .context("a manifest without a folder")?;
        Ok(Self {
            root: root.join("src"),
        })
    }

    /// The text of a file, by its path below `src`.
    pub fn read(&self, file: &Path) -> Result<String> {
        let path = self.root.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// All groups, by name. Quantised copies of models have no layers of candle's and are left out.
    pub fn groups(&self) -> Result<Vec<Group>> {
        let list = self.read(Path::new("models/mod.rs"))?;
        let names = list
            .lines()
            .filter_map(|line| line.strip_prefix("pub mod "));
        let names = names.map(|name| name.trim_end_matches(';').to_string());
        // Neither the layers that several models share nor the file format of one are models.
        let is_model = |name: &String| {
            !name.starts_with("quantized_") && name != "with_tracing" && name != "llama2_c_weights"
        };
        let names = names.filter(is_model);
        names.map(|name| self.group(name)).collect()
    }

    fn group(&self, name: String) -> Result<Group> {
        let mut files = BTreeSet::new();
        let mut open = vec![format!("models::{name}")];
        if name == "llama2_c" {
            // Its configuration has methods there.
            open.push("models::llama2_c_weights".into());
        }
        let mut seen = BTreeSet::new();
        while let Some(module) = open.pop() {
            if !seen.insert(module.clone()) {
                continue;
            }
            for file in self.files(&module)? {
                let text = self.read(&file)?;
                open.extend(self.mentioned(&module, &text));
                files.insert(file);
            }
        }
        Ok(Group { name, files })
    }

    /// The files of a module: one, or a folder.
    fn files(&self, module: &str) -> Result<Vec<PathBuf>> {
        let path = PathBuf::from(module.replace("::", "/"));
        let file = path.with_extension("rs");
        if self.root.join(&file).exists() {
            return Ok(vec![file]);
        }
        let mut files = Vec::new();
        let mut folders = vec![path];
        while let Some(folder) = folders.pop() {
            let inside = fs::read_dir(self.root.join(&folder));
            for entry in inside.with_context(|| format!("no module {module}"))? {
                let entry = entry?;
                let path = folder.join(entry.file_name());
                match entry.file_type()?.is_dir() {
                    true => folders.push(path),
                    false if path.extension().is_some_and(|end| end == "rs") => files.push(path),
                    false => {}
                }
            }
        }
        Ok(files)
    }

    /// The other modules of the crate that a module's text names.
    fn mentioned(&self, module: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        let is_file = self
            .root
            .join(format!("{}.rs", module.replace("::", "/")))
            .exists();
        let mut prefixes = vec![("models::", "models::"), ("crate::", "")];
        // From a file right below `models`, `super` is `models`; from a folder's files, two of them.
        match is_file && module.starts_with("models::") {
            true => prefixes.push(("super::", "models::")),
            false => prefixes.push(("super::super::", "models::")),
        }
        for (prefix, room) in prefixes {
            for (at, _) in text.match_indices(prefix) {
                if room.is_empty() && text[at..].starts_with("crate::models::") {
                    continue;
                }
                let rest = &text[at + prefix.len()..];
                let names = match rest.strip_prefix('{') {
                    Some(list) => list.split_once('}').map_or("", |(list, _)| list),
                    None => rest,
                };
                let first = names.split(|c: char| !(c.is_alphanumeric() || c == '_'));
                let single = !rest.starts_with('{');
                for name in first
                    .filter(|name| !name.is_empty())
                    .take(if single { 1 } else { 64 })
                {
                    let module = format!("{room}{name}");
                    if self.exists(&module) {
                        found.push(module);
                    }
                }
            }
        }
        found
    }

    fn exists(&self, module: &str) -> bool {
        let path = self.root.join(module.replace("::", "/"));
        module != "models"
            && module != "lib"
            && (path.is_dir() || path.with_extension("rs").exists())
    }
}

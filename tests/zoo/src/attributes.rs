//! Attributes beyond the rules: what an owner writes after reading a model and the errors.
//!
//! One line an attribute, in `attributes.txt`: file, type, field, attribute. An empty field is the type
//! itself; `impl Trait` in place of a type, and the type in place of a field, is an impl block;
//! `fn name` in place of a field is a method.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

#[derive(Default)]
pub struct Attributes(HashMap<(String, String, String), String>);

impl Attributes {
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("//"));
        let all = lines.map(|line| {
            let mut parts = line.splitn(4, '|').map(str::trim).map(String::from);
            let mut part = || parts.next().with_context(|| format!("four parts: {line}"));
            Ok(((part()?, part()?, part()?), part()?))
        });
        Ok(Self(all.collect::<Result<_>>()?))
    }

    pub fn of(&self, file: &Path, ty: &str, field: &str) -> Option<&str> {
        let key = (below_models(file), ty.to_string(), field.to_string());
        self.0.get(&key).map(String::as_str)
    }

    /// True if there are attributes for one of the files.
    pub fn concern<'a>(&self, mut files: impl Iterator<Item = &'a PathBuf>) -> bool {
        files.any(|file| {
            let file = below_models(file);
            self.0.keys().any(|(of, _, _)| *of == file)
        })
    }
}

/// A file's path in the folder of models, as the lists name it.
pub fn below_models(file: &Path) -> String {
    let file = file.strip_prefix("models").unwrap_or(file);
    file.to_string_lossy().into_owned()
}

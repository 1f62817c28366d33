//! From the adapter's module paths to those of the checkpoint.

use super::base::Base;
use crate::config::matching::{is_or_starts_with, modules_above};
use std::collections::HashSet;

/// How the checkpoint's paths differ from the adapter's. The adapter may have been trained on a
/// model around the checkpoint's, or inside it: all names then lack a first part, or have one more.
#[derive(Debug, PartialEq)]
pub(super) enum Paths {
    Same,
    Without(String),
    With(String),
}

impl Paths {
    /// The difference by which most modules are found; none, if that is no worse.
    pub fn find<'a>(base: &Base, modules: impl Iterator<Item = &'a str>) -> Self {
        let modules: Vec<&str> = modules.collect();
        let mut known: HashSet<&str> = HashSet::new();
        for name in base.names() {
            known.insert(name);
            known.extend(modules_above(name));
        }
        let first = |path: &str| path.split('.').next().unwrap_or(path).to_string();
        let mut heads: Vec<String> = modules.iter().map(|path| first(path)).collect();
        let mut tops: Vec<String> = base.names().map(first).collect();
        for list in [&mut heads, &mut tops] {
            list.sort();
            list.dedup();
            // No model has more. A hostile file might, to take our time.
            list.truncate(64);
        }
        let found = |paths: &Self| {
            let there = |path: &&&str| known.contains(paths.of(path).as_str());
            modules.iter().filter(there).count()
        };
        let mut best = (found(&Self::Same), Self::Same);
        let others = heads.into_iter().map(Self::Without);
        for paths in others.chain(tops.into_iter().map(Self::With)) {
            if best.0 == modules.len() {
                break;
            }
            let count = found(&paths);
            if count > best.0 {
                best = (count, paths);
            }
        }
        best.1
    }

    pub fn of(&self, path: &str) -> String {
        match self {
            Self::Same => path.into(),
            Self::Without(head) if is_or_starts_with(path, head) => {
                path[head.len()..].trim_start_matches('.').into()
            }
            Self::Without(_) => path.into(),
            Self::With(head) => format!("{head}.{path}"),
        }
    }
}

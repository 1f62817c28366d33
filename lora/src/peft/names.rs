//! Names of adapters, and the adapters in a directory.

use super::replace::place;
use super::{CONFIG_FILE, check_name};
use crate::{DEFAULT_ADAPTER, Error, Result};
use std::path::{Path, PathBuf};

/// The adapters in a directory: name and place of each.
///
/// PEFT saves the adapter `default` in the directory itself, and any other adapter in a
/// sub-directory of its name. The default adapter comes first, the others by name. A sub-directory
/// without an `adapter_config.json` is no adapter; a hidden one is passed over.
///
/// # Errors
/// If the directory cannot be read, or an adapter in it has a name that is [not valid](check_name)
/// or comes twice.
pub fn adapters_in(dir: impl AsRef<Path>) -> Result<Vec<(String, PathBuf)>> {
    let dir = dir.as_ref();
    let failed = |error| Error::file(dir, error);
    let mut named = Vec::new();
    let mut problems = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if hidden || !path.is_dir() || !place(&path, CONFIG_FILE).is_file() {
            continue;
        }
        match name.to_str().map(|name| (name, check_name(name))) {
            Some((name, Ok(()))) => named.push((name.to_string(), path)),
            _ => problems.push(format!(
                "holds an adapter in {name:?}, which is no valid adapter name: rename the directory"
            )),
        }
    }
    named.sort();
    if place(dir, CONFIG_FILE).is_file() {
        if named.iter().any(|(name, _)| name == DEFAULT_ADAPTER) {
            problems.push(format!(
                "is an adapter and holds one in `{DEFAULT_ADAPTER}`: both have that name"
            ));
        }
        named.insert(0, (DEFAULT_ADAPTER.into(), dir.into()));
    }
    if problems.is_empty() {
        return Ok(named);
    }
    problems.sort();
    Err(Error::File {
        path: dir.into(),
        problems,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_default_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(adapters_in(dir).unwrap().is_empty());
        for name in ["b", "a", ".git", "checkpoint"] {
            fs::create_dir(dir.join(name)).unwrap();
            if name != "checkpoint" {
                fs::write(dir.join(name).join(CONFIG_FILE), "{}").unwrap();
            }
        }
        let names = || -> Vec<_> {
            let adapters = adapters_in(dir).unwrap().into_iter();
            adapters.map(|(name, _)| name).collect()
        };
        assert_eq!(names(), ["a", "b"]);
        fs::write(dir.join(CONFIG_FILE), "{}").unwrap();
        assert_eq!(names(), ["default", "a", "b"]);
        assert_eq!(adapters_in(dir).unwrap()[1].1, dir.join("a"));

        for name in ["default", "v1.0"] {
            fs::create_dir(dir.join(name)).unwrap();
            fs::write(dir.join(name).join(CONFIG_FILE), "{}").unwrap();
        }
        let error = adapters_in(dir).unwrap_err().to_string();
        assert!(
            error.contains("v1.0") && error.contains("both have that name"),
            "{error}"
        );
        assert!(adapters_in(dir.join("absent")).is_err());
    }
}

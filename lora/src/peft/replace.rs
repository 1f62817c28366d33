//! Replacing the two files of a directory such that a crash at any moment leaves an adapter.

use super::files::{stage, sync};
use super::{CONFIG_FILE, WEIGHTS_FILE};
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The folder that holds both new files while they replace those of the directory.
const NEW: &str = ".adapter-new";

/// Where a file of the directory's adapter is: in the directory itself, or, where a save was cut
/// off, in the folder of new files.
///
/// Only a directory without a configuration is in the middle of a save; what is in the folder
/// otherwise never took effect.
pub(super) fn place(dir: &Path, file: &str) -> PathBuf {
    let new = dir.join(NEW).join(file);
    match !dir.join(CONFIG_FILE).exists() && new.exists() {
        true => new,
        false => dir.join(file),
    }
}

/// Writes both files, or changes nothing.
///
/// Two files cannot be replaced in one step. So both are written to a folder in the directory and
/// flushed to the disk; the folder gets its name, `.adapter-new`; the old configuration is removed,
/// which is the moment from which the new files count; and they are moved up, the configuration
/// last. Whoever reads without this module in between sees no configuration instead of a mixture,
/// and finds the whole adapter in the folder. The next save finishes one that was cut off. If the
/// old configuration has the same bytes it stays, and the weights are replaced in one step.
///
/// A process that is killed before leaves the old files as they were, and a temporary file or folder
/// whose name begins with `.adapter-`.
pub(super) fn write(dir: &Path, config: &[u8], weights: &[u8]) -> Result<()> {
    replace(dir, config, weights)
        .map_err(|error| Error::file(dir, format!("cannot be written: {error}")))
}

fn replace(dir: &Path, config: &[u8], weights: &[u8]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    finish(dir)?;
    let (config_path, weights_path) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
    if fs::read(&config_path).is_ok_and(|old| old == config) {
        stage(dir, weights)?.persist(&weights_path)?;
    } else {
        for path in [&config_path, &weights_path] {
            if path.is_dir() {
                let message = format!("{} is a directory", path.display());
                return Err(io::Error::new(io::ErrorKind::IsADirectory, message));
            }
        }
        let mut folder = tempfile::Builder::new();
        folder.prefix(".adapter-");
        #[cfg(unix)]
        folder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = folder.tempdir_in(dir)?;
        for (file, bytes) in [(CONFIG_FILE, config), (WEIGHTS_FILE, weights)] {
            let mut file = File::create_new(folder.path().join(file))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        sync(folder.path());
        fs::rename(folder.path(), dir.join(NEW))?;
        // It has another name now and is not to be removed.
        let _ = folder.keep();
        sync(dir);
        if config_path.exists() {
            fs::remove_file(&config_path)?;
        }
        finish(dir)?;
    }
    sync(dir);
    Ok(())
}

/// Moves up the new files of a save that took effect; removes those of one that did not.
fn finish(dir: &Path) -> io::Result<()> {
    let new = dir.join(NEW);
    if !new.is_dir() {
        return Ok(());
    }
    if !dir.join(CONFIG_FILE).exists() {
        for file in [WEIGHTS_FILE, CONFIG_FILE] {
            if new.join(file).exists() {
                fs::rename(new.join(file), dir.join(file))?;
            }
        }
    }
    fs::remove_dir_all(&new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries
            .map(|e| {
                (
                    e.file_name().into_string().unwrap(),
                    fs::read(e.path()).unwrap_or_default(),
                )
            })
            .collect();
        files.sort();
        files
    }

    /// Both files as they are to be read.
    fn read(dir: &Path) -> [String; 2] {
        [CONFIG_FILE, WEIGHTS_FILE].map(|file| fs::read_to_string(place(dir, file)).unwrap())
    }

    #[test]
    fn both_files_are_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let file = |name: &str, bytes: &[u8]| (name.to_string(), bytes.to_vec());
        for (config, weights) in [(b"c1", b"w1"), (b"c1", b"w2"), (b"c2", b"w3")] {
            write(&dir, config, weights).unwrap();
            let expected = [file(CONFIG_FILE, config), file(WEIGHTS_FILE, weights)];
            assert_eq!(contents(&dir), expected);
        }
    }

    #[test]
    fn a_failure_leaves_the_old_files() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::write(dir.join(CONFIG_FILE), "c1").unwrap();
        // A directory cannot be replaced by a file that is renamed.
        fs::create_dir(dir.join(WEIGHTS_FILE)).unwrap();
        for config in [b"c1", b"c2"] {
            assert!(write(dir, config, b"w2").is_err());
            let names: Vec<_> = contents(dir).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, [CONFIG_FILE, WEIGHTS_FILE]);
            assert_eq!(fs::read(dir.join(CONFIG_FILE)).unwrap(), b"c1");
        }
    }

    /// Every state that a crash can leave is read as one adapter, and the next save ends it.
    #[test]
    fn every_step_leaves_a_pair() {
        let at = |count: usize| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().to_path_buf();
            write(&path, b"c1", b"w1").unwrap();
            let new = path.join(NEW);
            let steps: [&dyn Fn(); 5] = [
                &|| fs::create_dir(path.join(".adapter-tmp")).unwrap(),
                &|| {
                    fs::create_dir(&new).unwrap();
                    fs::write(new.join(CONFIG_FILE), "c2").unwrap();
                    fs::write(new.join(WEIGHTS_FILE), "w2").unwrap();
                },
                &|| fs::remove_file(path.join(CONFIG_FILE)).unwrap(),
                &|| fs::rename(new.join(WEIGHTS_FILE), path.join(WEIGHTS_FILE)).unwrap(),
                &|| fs::rename(new.join(CONFIG_FILE), path.join(CONFIG_FILE)).unwrap(),
            ];
            steps[..count].iter().for_each(|step| step());
            dir
        };
        for (steps, expected) in [
            (1, ["c1", "w1"]),
            (2, ["c1", "w1"]),
            (3, ["c2", "w2"]),
            (4, ["c2", "w2"]),
            (5, ["c2", "w2"]),
        ] {
            let dir = at(steps);
            assert_eq!(read(dir.path()), expected, "{steps}");
            finish(dir.path()).unwrap();
            assert_eq!(read(dir.path()), expected, "{steps}");
            assert!(!dir.path().join(NEW).exists());
            write(dir.path(), b"c3", b"w3").unwrap();
            assert_eq!(read(dir.path()), ["c3", "w3"]);
        }
    }
}

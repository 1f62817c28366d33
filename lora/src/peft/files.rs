//! Reading and writing the two files of a directory.

use super::tensor_file::TensorFile;
use super::{CONFIG_FILE, WEIGHTS_FILE};
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempPath};

/// A configuration larger than this is none.
const MAX_CONFIG: u64 = 16 << 20;

pub(super) fn read_config(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join(CONFIG_FILE);
    if !dir.is_dir() {
        return Err(Error::file(
            dir,
            "is no directory; an adapter is one, as PEFT saves it",
        ));
    }
    if !path.exists() {
        let named = super::adapters_in(dir).unwrap_or_default();
        let named: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        let hint = match named.is_empty() {
            true => String::new(),
            false => format!(
                "; there are adapters in its sub-directories {}",
                named.join(", ")
            ),
        };
        return Err(Error::file(dir, format!("holds no {CONFIG_FILE}{hint}")));
    }
    read_bounded(&path)
}

/// A JSON file, if it is of a size that is sensible.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::file(path, error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let read = file.take(MAX_CONFIG + 1).read_to_end(&mut bytes);
    read.map_err(failed)?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(Error::file(
            path,
            "is larger than 16 MiB: not a configuration",
        ));
    }
    Ok(bytes)
}

/// The weights' bytes. The header is checked first, so that nothing is read of a file that claims
/// to be larger than it is, or the other way round.
pub(super) fn read_weights(dir: &Path) -> Result<Vec<u8>> {
    let path = weights_path(dir)?;
    TensorFile::open(&path)?;
    fs::read(&path).map_err(|error| Error::file(path, error))
}

/// The file with the weights, which is no pickle.
pub(super) fn weights_path(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(WEIGHTS_FILE);
    let pickle = dir.join("adapter_model.bin");
    if !path.exists() && pickle.exists() {
        return Err(Error::file(
            pickle,
            "is a pickle, which can run code when it is read, and is never read here; save the \
             adapter again in PEFT with safe_serialization=True",
        ));
    }
    Ok(path)
}

/// Writes both files, or changes nothing.
///
/// Both are first written under temporary names in the directory and flushed to the disk. What is
/// there already is then moved aside, the new files are moved into place, the configuration last:
/// a directory without one is no adapter, so that whoever reads in between sees none instead of a
/// mixture. If a step fails, the old files are moved back. If the old configuration has the same
/// bytes it stays, and the weights are replaced in one step.
///
/// Two files cannot be replaced in one step. A process that is killed between the renames leaves a
/// directory without a configuration; the old files are then under their temporary names, which
/// begin with `.adapter-`. Files of such names are left by a process that is killed earlier, too.
pub(super) fn write(dir: &Path, config: &[u8], weights: &[u8]) -> Result<()> {
    let failed = |error: io::Error| Error::file(dir, format!("cannot be written: {error}"));
    fs::create_dir_all(dir).map_err(failed)?;
    let new_weights = stage(dir, weights).map_err(failed)?;
    let (config_path, weights_path) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
    if fs::read(&config_path).is_ok_and(|old| old == config) {
        new_weights
            .persist(&weights_path)
            .map_err(|error| failed(error.error))?;
    } else {
        let new_config = stage(dir, config).map_err(failed)?;
        // Both names first, so that the time without a configuration is that of a few renames.
        let mut old_config = Aside::new(dir, config_path.clone()).map_err(failed)?;
        let mut old_weights = Aside::new(dir, weights_path.clone()).map_err(failed)?;
        old_config.take().map_err(failed)?;
        old_weights.take().map_err(failed)?;
        new_weights
            .persist_noclobber(&weights_path)
            .map_err(|error| failed(error.error))?;
        if let Err(error) = new_config.persist_noclobber(&config_path) {
            // The old weights come back only to a free name.
            fs::remove_file(&weights_path).map_err(failed)?;
            return Err(failed(error.error));
        }
        old_weights.discard();
        old_config.discard();
    }
    sync(dir);
    Ok(())
}

/// A file of the directory with these contents and a temporary name.
pub(super) fn stage(dir: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = temporary(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// An empty file of the directory with a temporary name.
pub(super) fn temporary(dir: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".adapter-");
    // As any new file: the process's mask applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(dir)
}

/// A file that can be moved aside; it then moves back unless it is discarded.
struct Aside {
    path: PathBuf,
    /// The name for it, if the file is there.
    free: Option<TempPath>,
    moved: Option<TempPath>,
}

impl Aside {
    fn new(dir: &Path, path: PathBuf) -> io::Result<Self> {
        let free = match path.exists() {
            true => Some(temporary(dir)?.into_temp_path()),
            false => None,
        };
        Ok(Self {
            path,
            free,
            moved: None,
        })
    }

    fn take(&mut self) -> io::Result<()> {
        if let Some(free) = &self.free {
            fs::rename(&self.path, free)?;
            self.moved = self.free.take();
        }
        Ok(())
    }

    fn discard(mut self) {
        self.moved = None;
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(moved) = self.moved.take()
            && let Err(error) = moved.persist(&self.path)
        {
            // Better an odd name than no file.
            let _ = error.path.keep();
        }
    }
}

/// Makes the renames durable where directories can be flushed.
pub(super) fn sync(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
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
        assert!(write(dir, b"c1", b"w2").is_err());
        let names: Vec<_> = contents(dir).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [CONFIG_FILE, WEIGHTS_FILE]);
        assert_eq!(fs::read(dir.join(CONFIG_FILE)).unwrap(), b"c1");

        assert!(write(dir, b"c2", b"w2").is_err());
        let names: Vec<_> = contents(dir).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [CONFIG_FILE, WEIGHTS_FILE]);
        assert_eq!(fs::read(dir.join(CONFIG_FILE)).unwrap(), b"c1");
    }
}

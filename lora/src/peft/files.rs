//! Reading and writing the two files of a directory.

use super::replace::place;
use super::tensor_file::TensorFile;
use super::{AdapterConfig, CONFIG_FILE, WEIGHTS_FILE};
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A configuration larger than this is none.
const MAX_CONFIG: u64 = 16 << 20;

pub(super) fn read_config(dir: &Path) -> Result<Vec<u8>> {
    let path = place(dir, CONFIG_FILE);
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

/// Both files of one save: if another process saves in between, they are read again.
pub(super) fn read_pair(dir: &Path) -> Result<(AdapterConfig, Vec<u8>)> {
    for _ in 0..16 {
        let json = read_config(dir)?;
        let config = AdapterConfig::read(dir)?;
        let weights = read_weights(dir)?;
        if read_config(dir)? == json {
            return Ok((config, weights));
        }
    }
    Err(Error::file(dir, "is being written again and again"))
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
    let path = place(dir, WEIGHTS_FILE);
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

/// A file of the directory with these contents and a temporary name.
pub(crate) fn stage(dir: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
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

/// Makes the renames durable where directories can be flushed.
pub(crate) fn sync(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
}

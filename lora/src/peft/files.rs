//! Reading and writing the two files of a directory.

use super::replace::place;
use super::{AdapterConfig, CONFIG_FILE, WEIGHTS_FILE};
use crate::file::{TensorFile, read_bounded};
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

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

//! Reading and writing the two files of a directory.

use super::replace::place;
use super::weights::Weights;
use super::{AdapterConfig, CONFIG_FILE, WEIGHTS_FILE};
use crate::file::read_bounded;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

pub(super) fn read_config(dir: &Path) -> Result<Vec<u8>> {
    let path = place(dir, CONFIG_FILE);
    if !dir.is_dir() {
        return Err(Error::file(
            dir,
            "is no directory; PEFT saves an adapter as a directory",
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

/// Opens both files of one save. Another process may save in between: the configuration is read
/// again once the weights are open, and if it changed, both files are opened again.
pub(super) fn open_pair(dir: &Path) -> Result<(AdapterConfig, Weights)> {
    for _ in 0..16 {
        let json = read_config(dir)?;
        let config = AdapterConfig::parse(dir, &json)?;
        let weights = Weights::open(dir)?;
        if read_config(dir)? == json {
            return Ok((config, weights));
        }
    }
    Err(Error::file(
        dir,
        "is being written all the time: try again when no process saves to it",
    ))
}

/// The path of the weights. Refuses a pickle in their place.
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

//! Reads a JSON file up to a limit.

use crate::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A JSON file larger than this is no configuration.
const MAX_JSON: u64 = 16;

/// Reads a JSON file, unless it is too large to be a configuration.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    read_up_to(path, MAX_JSON, "a configuration")
}

/// Reads a file, unless it has more MiB than any that is what this one should be.
pub(crate) fn read_up_to(path: &Path, mib: u64, what: &str) -> Result<Vec<u8>> {
    let most = mib << 20;
    let failed = |error| Error::file(path, error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    // One byte above the limit shows that the file is too large. A pipe has no length to ask for.
    let read = file.take(most + 1).read_to_end(&mut bytes);
    read.map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(Error::file(
            path,
            format!("is larger than {mib} MiB: not {what}"),
        ));
    }
    Ok(bytes)
}

//! Files that are written under a temporary name and then put in place whole.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use tempfile::NamedTempFile;

/// Writes a file with these contents into the directory, under a temporary name.
pub(crate) fn stage(dir: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = temporary(dir)?;
    file.write_all(bytes)?;
    // The contents reach the disk before a rename shows them. Otherwise a power cut could leave
    // the final name on an empty file.
    file.as_file().sync_all()?;
    Ok(file)
}

/// Makes an empty file in the directory, under a temporary name.
pub(crate) fn temporary(dir: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".adapter-");
    // tempfile makes files that only their owner can read. The process's mask alone shall decide
    // who can read these.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(dir)
}

/// Flushes a directory, so that renames in it survive a power cut. Errors are ignored, as not every
/// system can flush a directory.
pub(crate) fn sync(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
}

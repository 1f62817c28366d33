//! The data of this repository, `examples/data`, wherever the repository is now.

use anyhow::{Result, bail};
use std::env;
use std::path::{Path, PathBuf};

/// The file or folder of this name in `examples/data`: of the repository that the program is run in,
/// else of the one that it was built in.
///
/// # Errors
/// Says where it looked.
pub fn bundled(name: &str) -> Result<PathBuf> {
    let here = env::current_dir().unwrap_or_default();
    let program = env::current_exe().unwrap_or_default();
    let found = find(name, &[&here, program.parent().unwrap_or(&program)])?;
    // As short as the working directory allows.
    Ok(match found.strip_prefix(&here) {
        Ok(short) => short.into(),
        Err(_) => found,
    })
}

/// The file or folder of this name in the first `examples/data` that lies in one of these folders
/// or above it.
///
/// # Errors
/// Says where it looked.
pub fn find(name: &str, starts: &[&Path]) -> Result<PathBuf> {
    let data = Path::new("examples").join("data").join(name);
    let folders = starts.iter().flat_map(|start| start.ancestors());
    let mut places = folders.map(|folder| folder.join(&data));
    if let Some(found) = places.find(|place| place.exists()) {
        return Ok(found);
    }
    let starts = starts.iter().map(|start| start.display().to_string());
    let mut starts: Vec<String> = starts.collect();
    starts.dedup();
    bail!(
        "cannot find {}: it is neither in {} nor in a folder above; run the program inside of the \
         repository, or say where your own is",
        data.display(),
        starts.join(" nor in ")
    );
}

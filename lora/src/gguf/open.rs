//! Opening a checkpoint, whatever its format. A GGUF file is told by how it begins, not by its name.

use super::checkpoint::{checkpoint, directory};
use super::file::part_of;
use crate::file::Checkpoint;
use crate::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Whether a file begins as GGUF files do, whatever its name. False for a directory, and for a file
/// that cannot be read.
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("model.bin");
/// std::fs::write(&path, b"GGUF..")?;
/// assert!(lora::models::is_gguf(&path) && !lora::models::is_gguf(dir.path()));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn is_gguf(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    let mut magic = [0; 4];
    // A pipe would lose its first bytes.
    let file = path.is_file().then(|| File::open(path));
    let read = file.map(|file| file.and_then(|mut file| file.read_exact(&mut magic)));
    matches!(read, Some(Ok(()))) && &magic == b"GGUF"
}

/// The GGUF file that a path means: the file itself, or the one model of a directory that holds no
/// other weights. Of a model in parts the first.
///
/// # Errors
/// If the directory cannot be read, or holds several models.
pub(crate) fn find(path: &Path) -> Result<Option<PathBuf>> {
    if !path.is_dir() {
        return Ok(is_gguf(path).then(|| path.into()));
    }
    let failed = |error| Error::file(path, error);
    let (mut found, mut others) = (Vec::new(), false);
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        let is_first = part_of(&name).is_none_or(|(_, number, _)| number == 1);
        others |= name.ends_with(".safetensors") || name.ends_with(".index.json");
        if name.ends_with(".gguf") && is_first {
            found.push(entry);
        }
    }
    match (found.as_slice(), others) {
        ([one], false) => Ok(Some(one.clone())),
        ([], _) | (_, true) => Ok(None),
        (several, _) => {
            let problem = format!("holds {} GGUF files: name the file", several.len());
            Err(Error::file(path, problem))
        }
    }
}

/// Opens a checkpoint: a safetensors file, an index, a GGUF file, or a directory with one of these. A
/// model in a GGUF file has transformers' names and order of rows, and its tensors are dequantised, one
/// when it is asked for.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    opened(path, checkpoint)
}

/// As [`open`], for a directory that is to take the checkpoint's place: a GGUF file's tokenizer stands
/// beside.
pub(crate) fn open_directory(path: &Path) -> Result<Checkpoint> {
    opened(path, directory)
}

fn opened(path: &Path, of_gguf: fn(&Path) -> Result<Checkpoint>) -> Result<Checkpoint> {
    match find(path)? {
        Some(gguf) => of_gguf(&gguf),
        None => Checkpoint::open(path),
    }
}

//! Output that is written whole or not at all.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder for results. They are made in a hidden folder inside it, and put into place together
/// by [`publish`](Self::publish). Without that they are gone when this is dropped.
#[derive(Debug)]
pub struct Output {
    dir: PathBuf,
    staging: TempDir,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Output {
    /// Makes the folder and checks that it can be written to.
    ///
    /// # Errors
    /// If it cannot be made or written to.
    pub fn new(dir: &Path) -> Result<Self> {
        let missing = dir.ancestors().filter(|dir| !dir.as_os_str().is_empty());
        let missing = missing.take_while(|dir| !dir.exists());
        let made: Vec<_> = missing.map(Path::to_path_buf).collect();
        let staging = fs::create_dir_all(dir).and_then(|()| {
            let mut builder = tempfile::Builder::new();
            builder.prefix(".finetune-").tempdir_in(dir)
        });
        let staging =
            staging.with_context(|| format!("cannot write to output folder {}", dir.display()))?;
        Ok(Self {
            dir: dir.into(),
            staging,
            made,
        })
    }

    /// Where to make a result.
    pub fn draft(&self, name: &str) -> PathBuf {
        self.staging.path().join(name)
    }

    /// Puts the named results into place of earlier ones, all of them or none, and returns where
    /// they are.
    ///
    /// # Errors
    /// If a file cannot be moved; the earlier ones are then back in place.
    pub fn publish(mut self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let old = self.draft("earlier");
        fs::create_dir(&old)?;
        let mut done = Vec::<(PathBuf, PathBuf)>::new();
        for name in names {
            let place = self.dir.join(name);
            let earlier = old.join(name);
            let moved = self.replace(name, &place, &earlier);
            if let Err(error) = moved {
                for (place, earlier) in done.iter().rev() {
                    restore(place, earlier);
                }
                let place = place.display();
                return Err(error).with_context(|| format!("cannot put {place} into place"));
            }
            done.push((place, earlier));
        }
        self.made.clear();
        Ok(done.into_iter().map(|(place, _)| place).collect())
    }

    fn replace(&self, name: &str, place: &Path, earlier: &Path) -> std::io::Result<()> {
        let exists = place.symlink_metadata().is_ok();
        if exists {
            fs::rename(place, earlier)?;
        }
        let moved = fs::rename(self.draft(name), place);
        if moved.is_err() && exists {
            restore(place, earlier);
        }
        moved
    }
}

/// Takes a result away again and puts the earlier one back. Nothing more can be done on failure.
fn restore(place: &Path, earlier: &Path) {
    let _ = if place.is_dir() {
        fs::remove_dir_all(place)
    } else {
        fs::remove_file(place)
    };
    if earlier.symlink_metadata().is_ok() {
        let _ = fs::rename(earlier, place);
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.made.is_empty() {
            return;
        }
        // The staging folder goes first, or the folder is not empty.
        let _ = fs::remove_dir_all(self.staging.path());
        for dir in &self.made {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Bytes in a file, or in the files of a folder.
///
/// # Errors
/// If it cannot be read.
pub fn size_on_disk(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let mut size = 0;
    for entry in fs::read_dir(path)? {
        size += size_on_disk(&entry?.path())?;
    }
    Ok(size)
}

//! The checkpoints of a run: each is one file, written whole or not at all.

use super::state::{KEY, State};
use crate::optim::{AsAdamW, save_state_with};
use crate::{Error, LoraModule, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of checkpoints in an output.
const FOLDER: &str = "checkpoints";
const BEST: &str = "best.safetensors";
/// How temporary files begin, see `file::stage`.
const TEMPORARY: &str = ".adapter-";

/// The checkpoints in an output.
#[derive(Debug)]
pub(super) struct Checkpoints {
    dir: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Makes the folder.
    pub fn open(output: &Path, keep: usize) -> Result<Self> {
        let dir = output.join(FOLDER);
        fs::create_dir_all(&dir)
            .map_err(|error| Error::file(&dir, format!("the folder cannot be made: {error}")))?;
        Ok(Self { dir, keep })
    }

    /// The checkpoints with their steps, the last one last.
    fn all(&self) -> Result<Vec<(usize, PathBuf)>> {
        let failed = |error| Error::file(&self.dir, error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let step = name.and_then(|name| name.strip_prefix("step-"));
            let step = step.and_then(|step| step.strip_suffix(".safetensors"));
            if let Some(Ok(step)) = step.map(str::parse) {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The last checkpoint, if there is one.
    pub fn last(&self) -> Result<Option<PathBuf>> {
        Ok(self.all()?.pop().map(|(_, path)| path))
    }

    /// The best one's file.
    pub fn best(&self) -> PathBuf {
        self.dir.join(BEST)
    }

    /// Writes the checkpoint of the state's step, and takes away those that are too many.
    pub fn save<M: LoraModule>(
        &self,
        model: &M,
        optimizer: &impl AsAdamW,
        state: &State,
    ) -> Result<PathBuf> {
        let path = self.dir.join(format!("step-{:08}.safetensors", state.step));
        write(&path, model, optimizer, state)?;
        let mut all = self.all()?;
        all.truncate(all.len().saturating_sub(self.keep));
        for (_, path) in all {
            fs::remove_file(&path).map_err(|error| Error::file(&path, error))?;
        }
        Ok(path)
    }

    /// Writes the best checkpoint.
    pub fn save_best<M: LoraModule>(
        &self,
        model: &M,
        optimizer: &impl AsAdamW,
        state: &State,
    ) -> Result<()> {
        write(&self.best(), model, optimizer, state)
    }

    /// Takes away what a run left that was killed while it wrote a checkpoint.
    pub fn clean(&self) -> Result<()> {
        let failed = |error| Error::file(&self.dir, error);
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Writes all that a run needs to go on.
pub(super) fn write<M: LoraModule>(
    path: &Path,
    model: &M,
    optimizer: &impl AsAdamW,
    state: &State,
) -> Result<()> {
    let json = serde_json::to_string(state).map_err(|error| Error::file(path, error))?;
    save_state_with(path, model, optimizer, Some((KEY, json)))
}

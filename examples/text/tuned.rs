//! What the tuning of a model of texts came to.

use crate::output::size_on_disk;
use crate::results::{paths, peak_memory, row, size, training};
use crate::steps::Trained;
use anyhow::Result;
use lora::Summary;
use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

/// What every program reports of a tuning.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// Parameters trained.
    pub trainable: usize,
    /// Parameters in all.
    pub parameters: usize,
    /// The training's steps and times.
    pub trained: Trained,
    /// Largest resident memory of the process, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// Size of the adapter's folder.
    pub adapter_bytes: u64,
}

impl Tuned {
    /// Of a model with this summary, whose adapter is saved.
    ///
    /// # Errors
    /// If the adapter's folder cannot be read.
    pub fn of(summary: &Summary, trained: Trained, adapter: &Path) -> Result<Self> {
        Ok(Self {
            trainable: summary.trainable,
            parameters: summary.total,
            trained,
            peak_memory: peak_memory(),
            adapter_bytes: size_on_disk(adapter)?,
        })
    }

    /// Writes the rows, with how a fresh model with the saved adapter compares, and where the files are.
    ///
    /// # Errors
    /// Those of the formatter.
    pub fn rows(
        &self,
        f: &mut Formatter<'_>,
        reloaded: impl Display,
        saved: &[PathBuf],
    ) -> fmt::Result {
        let Trained {
            run,
            tokens_a_second,
            ..
        } = &self.trained;
        training(f, self.trainable, self.parameters, run, *tokens_a_second)?;
        if let Some(bytes) = self.peak_memory {
            row(f, "peak memory", size(bytes))?;
        }
        row(f, "adapter on disk", size(self.adapter_bytes))?;
        row(f, "adapter reloaded", reloaded)?;
        paths(f, saved)
    }
}

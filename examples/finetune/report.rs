//! What came of the job.

use crate::agreement::Agreement;
use crate::results::{paths, percent, row, size, training};
use lora::train::Trained;
use std::fmt;
use std::path::PathBuf;

/// The results; `{}` prints them as a table.
#[derive(Clone, Debug)]
pub struct Report {
    /// Accuracy of the base model on the held-out images, if it knows their classes.
    pub before: Option<f64>,
    /// Accuracy of the tuned model on them.
    pub after: f64,
    /// Number of held-out images.
    pub held_out: usize,
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
    /// Size of the full checkpoint.
    pub checkpoint_bytes: u64,
    /// A fresh model with the saved adapter, against the tuned one.
    pub reloaded: Agreement,
    /// The merged model against the unmerged one.
    pub merged: Agreement,
    /// The base model that was written, against the tuned one.
    pub base: Agreement,
    /// What was written.
    pub saved: Vec<PathBuf>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = self.held_out;
        let accuracy = |share| format!("{} of {images} held-out images", percent(share));
        if let Some(before) = self.before {
            row(f, "accuracy before", accuracy(before))?;
        }
        row(f, "accuracy after", accuracy(self.after))?;
        training(f, self.trainable, self.parameters, &self.trained, None)?;
        if let Some(bytes) = self.peak_memory {
            row(f, "peak memory", size(bytes))?;
        }
        let (adapter, full) = (size(self.adapter_bytes), size(self.checkpoint_bytes));
        let on_disk = format!("{adapter}; the full checkpoint {full}");
        row(f, "adapter on disk", on_disk)?;
        row(f, "adapter reloaded", &self.reloaded)?;
        row(f, "merged", &self.merged)?;
        row(f, "as a base model", &self.base)?;
        paths(f, &self.saved)
    }
}

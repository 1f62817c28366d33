//! What came of the job.

use crate::agreement::Agreement;
use crate::results::{paths, row, size, thousands, training};
use crate::steps::Trained;
use std::fmt;
use std::path::PathBuf;

/// The results; `{}` prints them as a table.
#[derive(Clone, Debug)]
pub struct Report {
    /// Perplexity of the base model on what is held out.
    pub before: f64,
    /// Perplexity of the tuned model.
    pub after: f64,
    /// Tokens that it is a mean over.
    pub held_out: usize,
    /// How the base model went on with the prompt.
    pub sample_before: String,
    /// How the tuned model does.
    pub sample_after: String,
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
    /// A fresh model with the saved adapter, against the tuned one, on the tokens of some passages.
    pub reloaded: Agreement,
    /// What was written.
    pub saved: Vec<PathBuf>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = thousands(self.held_out);
        let perplexity = |value: f64| format!("{value:.3} on {tokens} held-out tokens");
        row(f, "perplexity before", perplexity(self.before))?;
        row(f, "perplexity after", perplexity(self.after))?;
        training(
            f,
            self.trainable,
            self.parameters,
            &self.trained.run,
            self.trained.tokens_a_second,
        )?;
        if let Some(bytes) = self.peak_memory {
            row(f, "peak memory", size(bytes))?;
        }
        row(f, "adapter on disk", size(self.adapter_bytes))?;
        row(f, "adapter reloaded", &self.reloaded)?;
        paths(f, &self.saved)
    }
}

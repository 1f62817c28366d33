//! What came of the job.

use crate::agreement::Agreement;
use crate::results::{row, thousands};
use crate::text::Tuned;
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
    /// The tuning.
    pub tuned: Tuned,
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
        self.tuned.rows(f, &self.reloaded, &self.saved)
    }
}

//! What came of the job.

use crate::agreement::Agreement;
use crate::results::{percent, row};
use crate::text::Tuned;
use anyhow::Result;
use lora::metrics::{F1, accuracy};
use std::fmt;
use std::path::PathBuf;

/// How many predictions are right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// The share of predictions that are right.
    pub accuracy: f64,
    /// The mean F1 of the classes.
    pub f1: f64,
}

impl Scores {
    /// Those of predictions.
    ///
    /// # Errors
    /// If there are none.
    pub fn of(predictions: &[u32], labels: &[u32]) -> Result<Self> {
        Ok(Self {
            accuracy: accuracy(predictions, labels)?,
            f1: F1::macro_mean(predictions, labels)?.f1,
        })
    }
}

/// The results; `{}` prints them as tables.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of the base model.
    pub before: Scores,
    /// Of the tuned model.
    pub after: Scores,
    /// Whether the base model's head was fresh.
    pub fresh: bool,
    /// Number of held-out texts.
    pub held_out: usize,
    /// What was taken for what.
    pub confusion: String,
    /// Some held-out texts.
    pub examples: String,
    /// The tuning.
    pub tuned: Tuned,
    /// A fresh model with the saved adapter, against the tuned one.
    pub reloaded: Agreement,
    /// What was written.
    pub saved: Vec<PathBuf>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self.held_out;
        let scores = |scores: Scores, note: &str| {
            format!(
                "{}, F1 {} on {texts} held-out texts{note}",
                percent(scores.accuracy),
                percent(scores.f1)
            )
        };
        let note = if self.fresh {
            ", with a fresh head"
        } else {
            ""
        };
        row(f, "accuracy before", scores(self.before, note))?;
        row(f, "accuracy after", scores(self.after, ""))?;
        self.tuned.rows(f, &self.reloaded, &self.saved)?;
        write!(f, "\n{}\n{}", self.confusion, self.examples)
    }
}

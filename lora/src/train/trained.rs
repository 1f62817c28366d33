//! What a run came to.

use super::Evaluation;
use crate::GradientCheck;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What a run came to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trained {
    /// Why it ended.
    pub ended: Ended,
    /// The number of steps, those before a stop included.
    pub steps: usize,
    /// The mean loss of each epoch. The last epoch may be a part of one.
    pub losses: Vec<f64>,
    /// The check of the gradients on the first batch, if this call made it.
    pub gradients: Option<GradientCheck>,
    /// All evaluations.
    pub evaluations: Vec<Evaluation>,
    /// The best of them.
    pub best: Option<Evaluation>,
    /// The last checkpoint, if there is an output.
    pub checkpoint: Option<PathBuf>,
    /// The median duration of this call's steps.
    pub step: Duration,
    /// The duration of this call.
    pub total: Duration,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// All is done.
    Finished,
    /// The evaluations were no longer better.
    Early,
    /// [`Trainer::stop_when`](super::Trainer::stop_when) asked for it: the run can go on.
    Stopped,
}

impl fmt::Display for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.steps;
        match self.ended {
            Ended::Finished => write!(f, "trained {steps} steps")?,
            Ended::Early => write!(f, "ended early after {steps} steps")?,
            Ended::Stopped => write!(f, "stopped after {steps} steps")?,
        }
        if let Some(loss) = self.losses.last() {
            write!(f, ", loss {loss:.4}")?;
        }
        if let Some(best) = &self.best {
            write!(f, "; best after step {}: {}", best.step, best.metrics)?;
        }
        match (&self.checkpoint, self.ended) {
            (Some(path), Ended::Stopped) => write!(
                f,
                "\nsaved {}: to go on, train again with the same output and resume(true)",
                path.display()
            ),
            (None, Ended::Stopped) => f.write_str(
                "\nnothing was saved, as there is no output: Trainer::output() keeps checkpoints",
            ),
            _ => Ok(()),
        }
    }
}

pub(super) fn median(durations: &[Duration]) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

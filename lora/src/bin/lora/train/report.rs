//! What came of a run.

use super::memory::{Memory, peak, size};
use lora::Summary;
use lora::train::{Ended, Evaluation, Metrics, Trained};
use serde::Serialize;
use std::fmt::{self, Display, Formatter};
use std::path::Path;

/// The result of a run: for people, or as JSON.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    output: &'a Path,
    /// `finished`, `early` or `stopped`.
    ended: &'static str,
    steps: usize,
    /// The mean losses of the epochs.
    losses: &'a [f64],
    before: Option<&'a Metrics>,
    after: Option<&'a Metrics>,
    best: Option<&'a Evaluation>,
    trainable: usize,
    parameters: usize,
    /// Layers whose gradients were checked, and how far they were off at most.
    gradients: Option<(usize, f64)>,
    seconds_a_step: f64,
    seconds: f64,
    /// Tokens of the data that are trained on a second.
    tokens_a_second: Option<f64>,
    peak_memory: Option<u64>,
    /// What to say to go on, if the run was stopped.
    go_on: Option<String>,
}

impl<'a> Report<'a> {
    /// Of a run that ended so.
    pub fn of(
        output: &'a Path,
        trained: &'a Trained,
        before: Option<&'a Metrics>,
        after: Option<&'a Metrics>,
        summary: &Summary,
        tokens_a_second: Option<f64>,
    ) -> Self {
        Self {
            output,
            ended: match trained.ended {
                Ended::Early => "early",
                Ended::Stopped => "stopped",
                _ => "finished",
            },
            steps: trained.steps,
            losses: &trained.losses,
            before,
            after,
            best: trained.best.as_ref(),
            trainable: summary.trainable,
            parameters: summary.total,
            gradients: trained
                .gradients
                .as_ref()
                .map(|check| (check.layers, check.worst)),
            seconds_a_step: trained.step.as_secs_f64(),
            seconds: trained.total.as_secs_f64(),
            tokens_a_second,
            peak_memory: peak(),
            go_on: None,
        }
    }

    /// Says how to go on.
    pub fn go_on(mut self, command: String) -> Self {
        self.go_on = Some(command);
        self
    }
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut rows = Vec::new();
        if let Some(after) = self.after {
            for (name, value) in after.iter() {
                let then = self.before.and_then(|before| before.get(name));
                let value = format!("{value:.4}");
                rows.push(match then {
                    Some(then) => (name, format!("{value:<10}{then:.4} before")),
                    None => (name, value),
                });
            }
        }
        let share = 100.0 * self.trainable as f64 / self.parameters.max(1) as f64;
        rows.push(("trainable share", format!("{share:.1} % of the parameters")));
        if let Some((layers, worst)) = self.gradients {
            let worst = 100.0 * worst;
            let checked = format!("right at {layers} layers, to {worst:.2} % by differences");
            rows.push(("gradients", checked));
        }
        let (step, steps, all) = (self.seconds_a_step, self.steps, self.seconds);
        rows.push((
            "seconds a step",
            format!("{step:.4} (median), {steps} steps, {all:.1} s in all"),
        ));
        if let Some(tokens) = self.tokens_a_second {
            rows.push(("tokens a second", format!("{tokens:.0}")));
        }
        if let Some(bytes) = self.peak_memory {
            rows.push(("peak memory", size(bytes)));
        }
        rows.push(("saved", self.output.display().to_string()));
        let rows = rows
            .iter()
            .map(|(name, value)| format!("{name:<20}{value}"));
        f.write_str(&rows.collect::<Vec<_>>().join("\n"))
    }
}

/// What a run would take.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// Steps in all.
    pub steps: usize,
    /// Batches of an epoch.
    pub batches_per_epoch: usize,
    /// Parameters that are trained, and all.
    pub trainable: usize,
    /// All parameters.
    pub parameters: usize,
    /// In bytes.
    pub memory: Memory,
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\nsteps   {}, of {} batches an epoch\nnothing was trained or written (--dry-run)",
            self.memory, self.steps, self.batches_per_epoch
        )
    }
}

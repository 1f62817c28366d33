//! How to train: what a run is asked for, all of which goes into its checkpoints.

use crate::optim::Schedule;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How to train.
///
/// ```
/// use lora::train::{Course, Every, TrainOptions};
///
/// let options = TrainOptions::epochs(3)
///     .accumulate(4) // micro-batches a step
///     .clip(1.0)
///     .course(Course::Cosine)
///     .warmup(0.05)
///     .evaluate(Every::Steps(100))
///     .save(Every::Steps(100))
///     .patience(5);
/// assert_eq!(options.accumulate, 4);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TrainOptions {
    /// How long.
    pub length: Length,
    /// Micro-batches whose gradients make one step. The last step of an epoch may have fewer.
    pub accumulate: usize,
    /// The joint norm of a step's gradients is bounded by this number.
    pub clip: Option<f64>,
    /// The learning rate's course.
    pub course: Course,
    /// The share of the steps in which the learning rate rises from 0.
    pub warmup: f64,
    /// Seed of dropout. The data's order has a seed of its own.
    pub seed: u64,
    /// Whether the gradients of the first batch are
    /// [compared](crate::LoraModule::check_gradients) with differences of the loss.
    pub check_gradients: bool,
    /// When the model is evaluated, if there is something to evaluate.
    pub evaluate: Every,
    /// When a checkpoint is written, if there is an output. One more is written at the end.
    pub save: Every,
    /// How many checkpoints are kept: the last ones. The best is kept beside them.
    pub keep: usize,
    /// The metric that says which evaluation is the best.
    pub best: Best,
    /// Ends the run after this many evaluations in a row that were no better than the best.
    pub patience: Option<usize>,
    /// Whether the model is the best one when the run is over, not the last one.
    pub end_with_best: bool,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Passes over the data.
    Epochs(usize),
    /// Steps of the optimiser.
    Steps(usize),
}

/// When something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    /// At the end of each epoch.
    Epoch,
    /// After each so many steps.
    Steps(usize),
    /// At the end of the run alone.
    Never,
}

/// The learning rate's course behind the warm-up. For another one see
/// [`Trainer::schedule`](super::Trainer::schedule).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    /// It stays.
    Constant,
    /// It falls to 0 on a line.
    Linear,
    /// It falls to 0 on half a cosine.
    Cosine,
}

/// A metric, and which of its values is better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Best {
    /// The smaller the better.
    Lowest(String),
    /// The larger the better.
    Highest(String),
}

impl TrainOptions {
    /// As many passes over the data; all else as the setters say.
    pub fn epochs(epochs: usize) -> Self {
        Self::new(Length::Epochs(epochs))
    }

    /// As many steps; all else as the setters say.
    pub fn steps(steps: usize) -> Self {
        Self::new(Length::Steps(steps))
    }

    fn new(length: Length) -> Self {
        Self {
            length,
            accumulate: 1,
            clip: None,
            course: Course::Linear,
            warmup: 0.0,
            seed: 0,
            check_gradients: true,
            evaluate: Every::Epoch,
            save: Every::Epoch,
            keep: 2,
            best: Best::Lowest("loss".into()),
            patience: None,
            end_with_best: false,
        }
    }

    /// Sets [`accumulate`](Self::accumulate); 1 if it is not set.
    pub fn accumulate(mut self, batches: usize) -> Self {
        self.accumulate = batches;
        self
    }

    /// Sets [`clip`](Self::clip); gradients are not bounded if it is not set.
    pub fn clip(mut self, norm: f64) -> Self {
        self.clip = Some(norm);
        self
    }

    /// Sets [`course`](Self::course); a line down to 0 if it is not set.
    pub fn course(mut self, course: Course) -> Self {
        self.course = course;
        self
    }

    /// Sets [`warmup`](Self::warmup); 0 if it is not set.
    pub fn warmup(mut self, share: f64) -> Self {
        self.warmup = share;
        self
    }

    /// Sets [`seed`](Self::seed); 0 if it is not set.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets [`check_gradients`](Self::check_gradients); they are checked if it is not set.
    pub fn check_gradients(mut self, check: bool) -> Self {
        self.check_gradients = check;
        self
    }

    /// Sets [`evaluate`](Self::evaluate); each epoch if it is not set.
    pub fn evaluate(mut self, every: Every) -> Self {
        self.evaluate = every;
        self
    }

    /// Sets [`save`](Self::save); each epoch if it is not set.
    pub fn save(mut self, every: Every) -> Self {
        self.save = every;
        self
    }

    /// Sets [`keep`](Self::keep); 2 if it is not set.
    pub fn keep(mut self, checkpoints: usize) -> Self {
        self.keep = checkpoints;
        self
    }

    /// Sets [`best`](Self::best); the lowest `loss` if it is not set.
    pub fn best(mut self, best: Best) -> Self {
        self.best = best;
        self
    }

    /// Sets [`patience`](Self::patience); the run goes on to its end if it is not set.
    pub fn patience(mut self, evaluations: usize) -> Self {
        self.patience = Some(evaluations);
        self
    }

    /// Sets [`end_with_best`](Self::end_with_best); the run ends with the last model if it is not set.
    pub fn end_with_best(mut self, best: bool) -> Self {
        self.end_with_best = best;
        self
    }

    /// Everything that is wrong with the options by themselves.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut at_least_1 = |what: &str, number: usize| {
            if number == 0 {
                problems.push(format!("{what} is 0: it must be at least 1"));
            }
        };
        match self.length {
            Length::Epochs(epochs) => at_least_1("the number of epochs", epochs),
            Length::Steps(steps) => at_least_1("the number of steps", steps),
        }
        at_least_1("`accumulate`", self.accumulate);
        at_least_1("`keep`", self.keep);
        if let Every::Steps(steps) = self.evaluate {
            at_least_1("the number of steps from evaluation to evaluation", steps);
        }
        if let Every::Steps(steps) = self.save {
            at_least_1("the number of steps from checkpoint to checkpoint", steps);
        }
        if let Some(patience) = self.patience {
            at_least_1("`patience`", patience);
        }
        if let Some(clip) = self.clip.filter(|clip| !(*clip > 0.0 && clip.is_finite())) {
            problems.push(format!("`clip` is {clip}: it must be above 0"));
        }
        if !(0.0..=1.0).contains(&self.warmup) {
            let warmup = self.warmup;
            problems.push(format!(
                "`warmup` is {warmup}: it is a share of the steps, from 0 to 1"
            ));
        }
        problems
    }

    /// The factor of the learning rate at a step, from 0, of so many.
    pub(super) fn factor(&self, step: usize, steps: Option<usize>) -> f64 {
        let Some(steps) = steps else {
            return 1.0;
        };
        let schedule = match self.course {
            Course::Constant => Schedule::constant(),
            Course::Linear => Schedule::linear(steps),
            Course::Cosine => Schedule::cosine(steps),
        };
        // The first step shall learn, too: it is step 1 of the warm-up.
        let warmup = (self.warmup * steps as f64).ceil() as usize;
        match step < warmup {
            true => (step + 1) as f64 / warmup as f64,
            false => schedule.warmup(warmup).factor(step),
        }
    }

    /// Whether the learning rate depends on the number of steps.
    pub(super) fn needs_length(&self) -> bool {
        self.course != Course::Constant || self.warmup > 0.0
    }

    /// Refuses to go on from a run with options that led to other numbers. What makes none is free. Gives
    /// what a user should know.
    pub(super) fn follows(&self, earlier: &Self) -> Result<Option<String>> {
        let mut problems = Vec::new();
        let mut differs = |what: &str, now: String, then: String| {
            if now != then {
                problems.push(format!(
                    "`{what}` was {then} when the checkpoint was written, and is {now}: set it as it was, \
                     or begin a new run with another output"
                ));
            }
        };
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        differs(
            "accumulate",
            text(&self.accumulate),
            text(&earlier.accumulate),
        );
        differs("clip", text(&self.clip), text(&earlier.clip));
        differs("course", text(&self.course), text(&earlier.course));
        differs("warmup", text(&self.warmup), text(&earlier.warmup));
        differs("seed", text(&self.seed), text(&earlier.seed));
        if !problems.is_empty() {
            return Err(Error::Training(problems));
        }
        let (now, then) = (self.length, earlier.length);
        Ok((now != then).then(|| {
            format!(
                "the run was to last {then}, and goes on for {now} in all: the learning rate's course is \
                 that of the new length from here"
            )
        }))
    }
}

impl std::fmt::Display for Length {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Epochs(1) => f.write_str("1 epoch"),
            Self::Epochs(epochs) => write!(f, "{epochs} epochs"),
            Self::Steps(1) => f.write_str("1 step"),
            Self::Steps(steps) => write!(f, "{steps} steps"),
        }
    }
}

impl Best {
    /// The metric's name.
    pub fn metric(&self) -> &str {
        match self {
            Self::Lowest(name) | Self::Highest(name) => name,
        }
    }

    /// Whether a value is better than another.
    pub fn is_better(&self, value: f64, than: f64) -> bool {
        match self {
            Self::Lowest(_) => value < than,
            Self::Highest(_) => value > than,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warmup_begins_above_0_and_the_course_ends_at_0() {
        let options = TrainOptions::steps(10).warmup(0.2);
        let factors: Vec<f64> = (0..=10)
            .map(|step| options.factor(step, Some(10)))
            .collect();
        let expected = [
            0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0,
        ];
        assert_eq!(factors, expected);
    }
}

//! Where a run is, beside the model and the optimiser.

use super::evaluate::Metrics;
use super::loss::Mean;
use super::{Evaluation, TrainOptions};
use crate::file::{TensorFile, parse_json};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Where the header of a checkpoint keeps the state.
pub(super) const KEY: &str = "lora_training_run";

/// All that decides how a run goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    pub options: TrainOptions,
    /// The optimiser's settings, to tell the user of a change.
    pub optimizer: String,
    pub step: usize,
    /// The number of whole epochs.
    pub epoch: usize,
    /// The mean loss of the present epoch so far.
    pub epoch_loss: Mean,
    /// The mean losses of whole epochs.
    pub losses: Vec<f64>,
    pub evaluations: Vec<Evaluation>,
    /// The place of the best of them.
    pub best: Option<usize>,
    /// The seconds that steps took.
    pub seconds: f64,
    /// The place in the data.
    pub source: Value,
}

impl State {
    pub fn new(options: &TrainOptions) -> Self {
        Self {
            version: 1,
            options: options.clone(),
            optimizer: String::new(),
            step: 0,
            epoch: 0,
            epoch_loss: Mean::default(),
            losses: Vec::new(),
            evaluations: Vec::new(),
            best: None,
            seconds: 0.0,
            source: Value::Null,
        }
    }

    /// Reads the state that a checkpoint holds.
    pub fn read(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let failed = |problem: String| Error::file(path, problem);
        let json = file.metadata().and_then(|metadata| metadata.get(KEY));
        let Some(json) = json else {
            return Err(failed("is no checkpoint of a training run".into()));
        };
        let value = parse_json(json.as_bytes());
        let state = value.and_then(serde_json::from_value::<Self>);
        let state = state.map_err(|error| failed(format!("holds a damaged run: {error}")))?;
        match state.version {
            1 => Ok(state),
            version => Err(failed(format!(
                "holds a run of version {version}: this crate reads version 1"
            ))),
        }
    }

    /// Adds an evaluation. True if it is the best so far; without the metric that ranks none is.
    pub fn evaluated(&mut self, metrics: Metrics) -> bool {
        let rank = &self.options.best;
        let value = metrics.get(rank.metric());
        let best = self.best.and_then(|best| self.evaluations.get(best));
        let best = best.and_then(|best| best.metrics.get(rank.metric()));
        let is_best =
            value.is_some_and(|value| best.is_none_or(|best| rank.is_better(value, best)));
        if is_best {
            self.best = Some(self.evaluations.len());
        }
        self.evaluations.push(Evaluation {
            step: self.step,
            epoch: self.epoch,
            metrics,
        });
        is_best
    }

    /// The number of evaluations since the best one.
    pub fn stale(&self) -> usize {
        self.best
            .map_or(0, |best| self.evaluations.len().saturating_sub(best + 1))
    }
}

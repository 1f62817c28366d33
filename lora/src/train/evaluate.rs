//! Evaluations while training.

use super::loss::Mean;
use super::{Loss, TrainOptions};
use crate::{Error, Result};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// What an evaluation found, by name.
///
/// ```
/// use lora::train::Metrics;
///
/// let metrics = Metrics::from([("loss", 0.25), ("accuracy", 0.9)]);
/// assert_eq!(metrics.get("accuracy"), Some(0.9));
/// assert_eq!(metrics.to_string(), "loss 0.2500  accuracy 0.9000");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Metrics(IndexMap<String, f64>);

impl Metrics {
    /// The value of a metric.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Names and values, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Refuses what no curve shows and no comparison ranks.
    pub(super) fn check(&self, options: &TrainOptions, step: usize) -> Result<()> {
        let wrong = self.iter().filter(|(_, value)| !value.is_finite());
        let wrong = wrong.map(|(name, value)| {
            format!(
                "the evaluation after step {step} gave `{name}` as {value}: a metric is a number"
            )
        });
        let mut problems: Vec<String> = wrong.collect();
        let name = options.best.metric();
        let must_rank = options.patience.is_some() || options.end_with_best;
        if must_rank && self.get(name).is_none() {
            problems.push(format!(
                "the evaluation gave no `{name}`, by which the best is chosen, but {self}: say \
                 TrainOptions::best(Best::Highest(..)) or Best::Lowest(..) with one of these"
            ));
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Training(problems)),
        }
    }
}

impl<S: Into<String>, const N: usize> From<[(S, f64); N]> for Metrics {
    fn from(metrics: [(S, f64); N]) -> Self {
        metrics.into_iter().collect()
    }
}

impl<S: Into<String>> FromIterator<(S, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (S, f64)>>(metrics: I) -> Self {
        let metrics = metrics.into_iter();
        Self(metrics.map(|(name, value)| (name.into(), value)).collect())
    }
}

impl std::fmt::Display for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<String> = self
            .iter()
            .map(|(name, value)| format!("{name} {value:.4}"))
            .collect();
        f.write_str(&all.join("  "))
    }
}

/// An evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// The number of steps before it.
    pub step: usize,
    /// The number of whole epochs before it.
    pub epoch: usize,
    /// What it found.
    pub metrics: Metrics,
}

/// The mean loss of batches, weighted by their counts: for held-out data.
///
/// # Errors
/// Those of the batches and of the loss, and no batch at all.
pub fn mean_loss<B, L: Into<Loss>>(
    batches: impl IntoIterator<Item = Result<B>>,
    mut loss: impl FnMut(&B) -> Result<L>,
) -> Result<f64> {
    let mut mean = Mean::default();
    for batch in batches {
        let loss: Loss = loss(&batch?)?.into();
        mean.add(loss.value()?, loss.count);
    }
    if mean.count() == 0 {
        let problem = "the mean loss of nothing: there is no batch, or none has anything to learn";
        return Err(Error::Training(vec![problem.into()]));
    }
    Ok(mean.get())
}

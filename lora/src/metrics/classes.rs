//! Metrics of predicted classes.

use super::alike;
use candle_core::Result;
use std::collections::BTreeSet;

/// The share of predictions that are the label.
///
/// # Errors
/// If the lists differ in length or are empty.
///
/// ```
/// assert_eq!(lora::metrics::accuracy(&[1, 0, 2, 1], &[1, 0, 0, 1])?, 0.75);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn accuracy<T: PartialEq>(predictions: &[T], labels: &[T]) -> Result<f64> {
    alike("accuracy", predictions, labels)?;
    let right = predictions.iter().zip(labels).filter(|(a, b)| a == b);
    Ok(right.count() as f64 / labels.len() as f64)
}

/// How well a class is found: precision, recall, and the harmonic mean of both.
///
/// ```
/// use lora::metrics::F1;
///
/// // Of two messages called spam one is, of three that are spam one is found.
/// let spam = F1::of(&[1, 1, 0, 0, 0], &[1, 0, 1, 1, 0], &1)?;
/// assert_eq!((spam.precision, spam.recall), (1. / 2., 1. / 3.));
/// assert!((spam.f1 - 0.4).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct F1 {
    /// The share of those predicted as the class that are of it; 0 if none is predicted.
    pub precision: f64,
    /// The share of those of the class that are predicted as it; 0 if there is none.
    pub recall: f64,
    /// 2 · precision · recall / (precision + recall); 0 if both are.
    pub f1: f64,
}

impl F1 {
    /// That of one class.
    ///
    /// # Errors
    /// If the lists differ in length or are empty.
    pub fn of<T: PartialEq>(predictions: &[T], labels: &[T], class: &T) -> Result<Self> {
        alike("F1", predictions, labels)?;
        let count = |of: &dyn Fn(&T, &T) -> bool| {
            let pairs = predictions.iter().zip(labels);
            pairs.filter(|(found, label)| of(found, label)).count() as f64
        };
        let found = count(&|found, label| found == class && label == class);
        let share = |of: f64| if of > 0.0 { found / of } else { 0.0 };
        let predicted = count(&|found, _| found == class);
        let actual = count(&|_, label| label == class);
        Ok(Self {
            precision: share(predicted),
            recall: share(actual),
            f1: 2.0 * share(predicted + actual),
        })
    }

    /// The mean over all classes that are predicted or are a label, each counting the same however
    /// rare: scikit-learn's `macro`.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn macro_mean<T: Ord>(predictions: &[T], labels: &[T]) -> Result<Self> {
        alike("F1", predictions, labels)?;
        let classes: BTreeSet<&T> = predictions.iter().chain(labels).collect();
        let each = classes
            .iter()
            .map(|class| Self::of(predictions, labels, class));
        let each: Vec<Self> = each.collect::<Result<_>>()?;
        let mean = |of: fn(&Self) -> f64| each.iter().map(of).sum::<f64>() / each.len() as f64;
        Ok(Self {
            precision: mean(|class| class.precision),
            recall: mean(|class| class.recall),
            f1: mean(|class| class.f1),
        })
    }
}

//! The memory that training takes.

use crate::train::settings::Settings;
use lora::train::Dataset;
use lora::{LoraModule, Result, Summary};
use serde::Serialize;
use std::cmp::Reverse;
use std::fmt;
use std::fs;

/// The memory that training takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// What is not trained; quantised weights as their blocks.
    weights: usize,
    /// What is trained.
    trained: usize,
    /// The gradients of that.
    gradients: usize,
    /// The optimiser's two moments of each number.
    optimizer: usize,
    /// The most that a forward and a backward pass of the longest batch took; only Linux tells.
    values: Option<u64>,
}

impl Memory {
    /// Of a model with this summary, by one forward and backward pass of the longest batch.
    ///
    /// # Errors
    /// If the model does not fit the data.
    pub fn of<D: Dataset>(
        model: &mut D::Model,
        summary: &Summary,
        data: &D,
        settings: &Settings,
    ) -> Result<Self> {
        let trainable = model.trainable_vars();
        let trained = trainable
            .iter()
            .map(|var| var.elem_count() * var.dtype().size_in_bytes());
        let trained: usize = trained.sum();
        Ok(Self {
            weights: summary.bytes - trained,
            trained,
            gradients: trained,
            optimizer: 2 * trained,
            values: measure(model, data, settings)?,
        })
    }

    fn total(&self) -> u64 {
        let known = self.weights + self.trained + self.gradients + self.optimizer;
        known as u64 + self.values.unwrap_or(0)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |bytes: usize| size(bytes as u64);
        write!(
            f,
            "memory  {} weights, {} trained, {} gradients, {} optimiser, ",
            bytes(self.weights),
            bytes(self.trained),
            bytes(self.gradients),
            bytes(self.optimizer)
        )?;
        match self.values {
            Some(values) => write!(
                f,
                "{} values of the longest batch (measured): {} in all",
                size(values),
                size(self.total())
            ),
            None => write!(
                f,
                "and the values of a batch, which this system does not tell: {} without these",
                size(self.total())
            ),
        }
    }
}

fn measure<D: Dataset>(model: &mut D::Model, data: &D, settings: &Settings) -> Result<Option<u64>> {
    let lengths = data.lengths();
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&number| Reverse(lengths[number]));
    order.truncate(settings.batch);
    if !data.teaches(&order) {
        return Ok(None);
    }
    let batch = data.batch(&order)?;
    model.train();
    // The peak begins anew where the system allows that.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let before = status("VmRSS:");
    let loss = data.loss(model, &batch)?;
    let grads = model.backward(&loss.mean)?;
    let peak = peak();
    drop(grads);
    model.eval();
    Ok(peak
        .zip(before)
        .map(|(peak, before)| peak.saturating_sub(before)))
}

/// The largest resident memory of this process so far, in bytes; only Linux tells.
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

fn status(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Bytes in kB, MB or GB.
pub fn size(bytes: u64) -> String {
    match bytes as f64 / 1000.0 {
        kilobytes if kilobytes < 1e3 => format!("{kilobytes:.0} kB"),
        kilobytes if kilobytes < 1e6 => format!("{:.1} MB", kilobytes / 1e3),
        kilobytes => format!("{:.2} GB", kilobytes / 1e6),
    }
}

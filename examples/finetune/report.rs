//! What came of the job.

use super::Agreement;
use lora::train::Trained;
use std::fmt;
use std::path::PathBuf;

/// The results; `{}` prints them as a table.
#[derive(Clone, Debug)]
pub struct Report {
    /// Accuracy of the base model on the held-out images, if it knows their classes.
    pub before: Option<f64>,
    /// Accuracy of the tuned model on them.
    pub after: f64,
    /// Number of held-out images.
    pub held_out: usize,
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
    /// Size of the full checkpoint.
    pub checkpoint_bytes: u64,
    /// A fresh model with the saved adapter, against the tuned one.
    pub reloaded: Agreement,
    /// The merged model against the unmerged one.
    pub merged: Agreement,
    /// The base model that was written, against the tuned one.
    pub base: Agreement,
    /// What was written.
    pub saved: Vec<PathBuf>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "{name:<20}{value}");
        let images = self.held_out;
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        if let Some(before) = self.before {
            row(
                "accuracy before",
                format!("{} of {images} held-out images", percent(before)),
            )?;
        }
        row(
            "accuracy after",
            format!("{} of {images} held-out images", percent(self.after)),
        )?;
        let share = percent(self.trainable as f64 / self.parameters as f64);
        row("trainable share", format!("{share} of the parameters"))?;
        let Trained {
            gradients,
            steps,
            step,
            total,
            ..
        } = &self.trained;
        if let Some(gradients) = gradients {
            let (layers, worst) = (gradients.layers, 100.0 * gradients.worst);
            let checked = format!("right at {layers} layers, to {worst:.2} % by differences");
            row("gradients", checked)?;
        }
        let (step, total) = (step.as_secs_f64(), total.as_secs_f64());
        let times = format!("{step:.4} (median of {steps}), {total:.1} s in all");
        row("seconds a step", times)?;
        if let Some(bytes) = self.peak_memory {
            row("peak memory", size(bytes))?;
        }
        let (adapter, full) = (size(self.adapter_bytes), size(self.checkpoint_bytes));
        row(
            "adapter on disk",
            format!("{adapter}; the full checkpoint {full}"),
        )?;
        row("adapter reloaded", self.reloaded.to_string())?;
        row("merged", self.merged.to_string())?;
        row("as a base model", self.base.to_string())?;
        for (index, path) in self.saved.iter().enumerate() {
            let name = if index == 0 { "saved" } else { "" };
            row(name, path.display().to_string())?;
        }
        Ok(())
    }
}

/// Bytes in kB or MB.
fn size(bytes: u64) -> String {
    let kilobytes = bytes as f64 / 1000.0;
    if kilobytes < 1000.0 {
        format!("{kilobytes:.0} kB")
    } else {
        format!("{:.1} MB", kilobytes / 1000.0)
    }
}

/// The largest resident memory of this process so far, in bytes; only Linux tells.
pub(super) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

//! The log of a run: a line of JSON for each step and each evaluation.

use super::{Evaluation, Step};
use crate::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The log's file in an output.
pub(super) const LOG: &str = "log.jsonl";

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    #[cfg(feature = "train-ui")]
    events: Option<super::tensorboard::Events>,
}

impl Log {
    /// Opens the log of an output, and cuts off what lies behind this step: the run takes those steps
    /// again.
    pub fn open(output: &Path, step: usize) -> Result<Self> {
        let path = output.join(LOG);
        let failed = |error| Error::file(&path, format!("cannot be written: {error}"));
        let text = read(&path)?;
        let kept = kept(&text, step).map_err(|problem| Error::file(&path, problem))?;
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(failed)?;
        file.set_len(kept as u64).map_err(failed)?;
        Ok(Self {
            path,
            file,
            #[cfg(feature = "train-ui")]
            events: None,
        })
    }

    /// Writes an event file for TensorBoard beside the log, too.
    #[cfg(feature = "train-ui")]
    pub fn with_events(mut self, output: &Path) -> Result<Self> {
        self.events = Some(super::tensorboard::Events::open(output)?);
        Ok(self)
    }

    pub fn step(&mut self, step: &Step) -> Result<()> {
        #[cfg(feature = "train-ui")]
        self.events
            .as_mut()
            .map_or(Ok(()), |events| events.step(step))?;
        self.line(step)
    }

    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        #[cfg(feature = "train-ui")]
        self.events
            .as_mut()
            .map_or(Ok(()), |events| events.evaluation(evaluation))?;
        self.line(evaluation)
    }

    /// One write, so that no other line comes between.
    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let failed = |error: String| Error::file(&self.path, format!("cannot be written: {error}"));
        let line = serde_json::to_string(line).map_err(|error| failed(error.to_string()))?;
        let written = self.file.write_all((line + "\n").as_bytes());
        written.map_err(|error| failed(error.to_string()))
    }

    /// Flushes the lines: a checkpoint stands for them.
    pub fn sync(&self) -> Result<()> {
        let synced = self.file.sync_data();
        synced.map_err(|error| Error::file(&self.path, error))
    }
}

/// The text of a log; empty if there is none.
fn read(path: &Path) -> Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::file(path, error)),
    }
}

/// The bytes of the lines up to a step.
fn kept(text: &str, step: usize) -> Result<usize, String> {
    let mut kept = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        // A killed run may leave half a line.
        let Some(whole) = line.strip_suffix('\n') else {
            break;
        };
        let value: Option<Value> = serde_json::from_str(whole).ok();
        match value.as_ref().and_then(|value| value["step"].as_u64()) {
            Some(of_line) if of_line <= step as u64 => kept += line.len(),
            Some(_) => break,
            None => {
                return Err(format!(
                    "line {} is none of a training run: move the file, or choose another output",
                    number + 1
                ));
            }
        }
    }
    Ok(kept)
}

/// A number over steps.
pub(super) type Curve = Vec<(f64, f64)>;

/// The curves that a log holds: name, then the points of the steps and those of the evaluations.
pub(super) fn curves(output: &Path) -> Result<Vec<(String, Curve, Curve)>> {
    let mut curves: Vec<(String, Curve, Curve)> = Vec::new();
    let mut add = |name: &str, trained: bool, point: (f64, f64)| {
        let place = curves.iter().position(|(known, ..)| known == name);
        let place = place.unwrap_or_else(|| {
            curves.push((name.into(), Vec::new(), Vec::new()));
            curves.len() - 1
        });
        let (_, steps, evaluations) = &mut curves[place];
        match trained {
            true => steps.push(point),
            false => evaluations.push(point),
        }
    };
    let text = read(&output.join(LOG))?;
    for value in text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let step = value["step"].as_f64().unwrap_or_default();
        for name in ["loss", "lr", "grad_norm"] {
            if let Some(number) = value[name].as_f64() {
                add(name, true, (step, number));
            }
        }
        for (name, number) in value["metrics"].as_object().into_iter().flatten() {
            if let Some(number) = number.as_f64() {
                add(name, false, (step, number));
            }
        }
    }
    Ok(curves)
}

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn a_log_is_cut_back_to_whole_lines_of_a_step() {
        let text = "{\"step\":1}\n{\"step\":1,\"metrics\":{}}\n{\"step\":2}\n{\"step\":3}\n{\"st";
        let lengths: Vec<usize> = (0..5).map(|step| kept(text, step).unwrap()).collect();
        assert_eq!(lengths, [0, 35, 46, 57, 57]);
        let problem = kept("{\"step\":1}\nmy notes\n", 4).unwrap_err();
        assert_eq!(
            problem,
            "line 2 is none of a training run: move the file, or choose another output"
        );
    }
}

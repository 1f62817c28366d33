//! The examples of a job: those to train on, and those to measure with.

use super::super::kind::{Kind, is_jsonl};
use super::super::settings::Settings;
use anyhow::{Result, bail};
use lora::data::{read_jsonl, split};
use serde::de::DeserializeOwned;
use std::path::Path;

/// Examples to train on, and to measure with, which may be none.
pub struct Examples<T> {
    pub training: Vec<T>,
    pub held_out: Vec<T>,
    /// What they are called.
    pub called: &'static str,
}

/// The records of `--data` as they are, and those of `--valid`.
pub fn read<T: DeserializeOwned>(
    settings: &Settings,
    kind: Kind,
) -> Result<(Vec<T>, Option<Vec<T>>)> {
    read_by(settings, kind, |path| read_jsonl(path))
}

/// What `read` makes of `--data` and `--valid`.
pub fn read_by<T>(
    settings: &Settings,
    kind: Kind,
    read: impl Fn(&Path) -> lora::Result<Vec<T>>,
) -> Result<(Vec<T>, Option<Vec<T>>)> {
    let all = read(&settings.data)?;
    let Some(valid) = &settings.valid else {
        return Ok((all, None));
    };
    if !is_jsonl(valid) || Kind::of(valid)? != kind {
        bail!(
            "--valid {} holds something else than --data: both must be of one kind",
            valid.display()
        );
    }
    Ok((all, Some(read(valid)?)))
}

/// Holds out a share where there is nothing else to measure with.
pub fn divide<T>(
    settings: &Settings,
    kind: Kind,
    (all, valid): (Vec<T>, Option<Vec<T>>),
) -> Result<Examples<T>> {
    let examples = match valid {
        Some(held_out) => Examples {
            training: all,
            held_out,
            called: kind.examples(),
        },
        None => {
            let share = settings.held_out.unwrap_or(0.0);
            let (training, held_out) = split(all, share, settings.seed)?;
            Examples {
                training,
                held_out,
                called: kind.examples(),
            }
        }
    };
    Ok(examples.limited(settings.eval_limit))
}

impl<T> Examples<T> {
    /// With so many examples at most to measure with, from all over.
    pub fn limited(mut self, most: Option<usize>) -> Self {
        if let Some(most) = most {
            let every = self.held_out.len().div_ceil(most).max(1);
            self.held_out = self.held_out.into_iter().step_by(every).collect();
        }
        self
    }

    /// Refuses too few examples.
    pub fn check(&self, settings: &Settings) -> Result<()> {
        let examples = self.called;
        let name = settings.data.display();
        if self.training.is_empty() {
            bail!("--data {name} has too few {examples} to train on");
        }
        let wants = settings.valid.is_some() || settings.held_out.is_some_and(|share| share > 0.0);
        if wants && self.held_out.is_empty() {
            bail!(
                "--data {name} has too few {examples} to hold some out: say --held-out 0, or name others by \
                 --valid"
            );
        }
        Ok(())
    }

    /// A line about them.
    pub fn fact(&self, settings: &Settings) -> String {
        let examples = self.called;
        let held_out = match &settings.valid {
            Some(valid) => format!(
                "{} to measure with of {}",
                self.held_out.len(),
                valid.display()
            ),
            None => format!("{} held out", self.held_out.len()),
        };
        format!(
            "data    {}: {} {examples} to train on, {held_out}",
            settings.data.display(),
            self.training.len()
        )
    }
}

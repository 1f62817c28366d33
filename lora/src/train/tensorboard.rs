//! The log of a run as TensorBoard's event file: records of protobuf, each with its length and checksums.

use super::log::curves;
use super::{Evaluation, Step};
use crate::file::stage;
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The file in an output. TensorBoard reads every file with `tfevents` in its name.
const EVENTS: &str = "events.out.tfevents.lora";

/// The event file of a run.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins the file with what the output's log holds, and goes on behind that.
    pub fn open(output: &Path) -> Result<Self> {
        let path = output.join(EVENTS);
        let failed = |error: String| Error::file(&path, format!("cannot be written: {error}"));
        let mut bytes = record(&[number(1, now()), text(3, b"brain.Event:2")].concat());
        for (name, steps, evaluations) in curves(output)? {
            for (folder, curve) in [("train", steps), ("eval", evaluations)] {
                for (step, value) in curve {
                    bytes.extend(scalar(&format!("{folder}/{name}"), step as u64, value));
                }
            }
        }
        let staged = stage(output, &bytes).map_err(|error| failed(error.to_string()))?;
        let persisted = staged.persist(&path);
        persisted.map_err(|error| failed(error.to_string()))?;
        let file = OpenOptions::new().append(true).open(&path);
        Ok(Self {
            file: file.map_err(|error| failed(error.to_string()))?,
            path,
        })
    }

    pub fn step(&mut self, step: &Step) -> Result<()> {
        let numbers = [
            ("loss", Some(step.loss)),
            ("lr", Some(step.lr)),
            ("grad_norm", step.grad_norm),
        ];
        let numbers = numbers.into_iter();
        self.scalars(
            "train",
            step.step,
            numbers.filter_map(|(name, number)| Some((name, number?))),
        )
    }

    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        self.scalars("eval", evaluation.step, evaluation.metrics.iter())
    }

    fn scalars<'a>(
        &mut self,
        folder: &str,
        step: usize,
        numbers: impl Iterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let records = numbers
            .flat_map(|(name, number)| scalar(&format!("{folder}/{name}"), step as u64, number));
        let written = self.file.write_all(&records.collect::<Vec<u8>>());
        written.map_err(|error| Error::file(&self.path, format!("cannot be written: {error}")))
    }
}

/// An `Event` with one value: wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } }.
fn scalar(tag: &str, step: u64, value: f64) -> Vec<u8> {
    let mut inner = text(1, tag.as_bytes());
    inner.push(2 << 3 | 5);
    inner.extend((value as f32).to_le_bytes());
    let mut event = number(1, now());
    event.push(2 << 3);
    varint(&mut event, step);
    event.extend(text(5, &text(1, &inner)));
    record(&event)
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// A field of eight bytes.
fn number(field: u8, value: f64) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 1];
    bytes.extend(value.to_le_bytes());
    bytes
}

/// A field of a length and bytes: a text, or a message.
fn text(field: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    varint(&mut bytes, value.len() as u64);
    bytes.extend(value);
    bytes
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// TFRecord: the length, its checksum, the data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts = [&length, &masked(&length)[..], data, &masked(data)];
    parts.concat()
}

fn masked(data: &[u8]) -> [u8; 4] {
    let sum = crc32c::crc32c(data).rotate_right(15);
    sum.wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of the `tensorboard` package 2.21.0, by
    /// `Event(step=300, summary=Summary(value=[Summary.Value(tag="train/loss", simple_value=0.5)]))`, written by
    /// its `RecordWriter`.
    #[test]
    fn records_are_those_of_tensorboard() {
        let mut event = vec![2 << 3];
        varint(&mut event, 300);
        let mut inner = text(1, b"train/loss");
        inner.push(2 << 3 | 5);
        inner.extend(0.5f32.to_le_bytes());
        event.extend(text(5, &text(1, &inner)));
        let hex: String = record(&event)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            "1800000000000000a37f4b2210ac022a130a110a0a747261696e2f6c6f7373150000003f69b2bbe0"
        );
    }
}

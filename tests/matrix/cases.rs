//! Cases of `fixtures`, run one by one with a list of what failed.

use crate::peft::support::{Result, Weights};
use candle_core::{DType, Tensor};
use serde_json::Value;
use std::path::{Path, PathBuf};

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

pub fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Runs all cases; panics with those that failed, and unless there are this many.
#[track_caller]
pub fn run<'a, T: 'a>(
    cases: impl IntoIterator<Item = (String, T)>,
    count: usize,
    check: impl Fn(&T) -> Result,
) {
    let mut failed = Vec::new();
    let mut checked = 0;
    for (name, case) in cases {
        checked += 1;
        if let Err(error) = check(&case) {
            failed.push(format!("{name}: {error}"));
        }
    }
    assert_eq!(checked, count, "cases");
    let list = failed.join("\n  ");
    assert!(
        failed.is_empty(),
        "{} of {count} cases failed:\n  {list}",
        failed.len()
    );
}

/// An error unless the tensors agree, relative to the largest expected value.
pub fn near(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) -> Result {
    let error = lora_tests::relative_error(&actual.detach(), expected)
        .map_err(|error| format!("{what}: {error}"))?;
    // A comparison with NaN is false.
    if error <= tolerance {
        return Ok(());
    }
    Err(format!("{what}: relative error {error:.1e}").into())
}

/// An error unless the values are equal.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, actual: T, expected: T) -> Result {
    if actual == expected {
        return Ok(());
    }
    Err(format!("{what}: {actual:?} here, {expected:?} in PEFT").into())
}

/// Token numbers as u32, all else as it is.
pub fn input(weights: &Weights, name: &str) -> Tensor {
    let input = weights.get(name);
    match input.dtype() {
        DType::I64 => input.to_dtype(DType::U32).unwrap(),
        _ => input,
    }
}

impl Weights {
    /// Those whose name starts so, without the start.
    pub fn under(&self, start: &str) -> Self {
        let tensors = self.0.iter();
        let tensors = tensors.filter_map(|(k, v)| Some((k.strip_prefix(start)?.into(), v.clone())));
        Self(tensors.collect())
    }
}

//! Fixtures, files and numbers.

use candle_core::{DType, Device, Tensor};
use candle_nn::Linear;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub type Error = Box<dyn std::error::Error>;
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// The tensors of a file.
pub struct Weights(pub BTreeMap<String, Tensor>);

impl Weights {
    pub fn read(path: impl AsRef<Path>) -> Self {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        Self(tensors.into_iter().collect())
    }

    pub fn get(&self, name: &str) -> Tensor {
        self.0[name].clone()
    }

    pub fn weight_and_bias(&self, name: &str) -> (Tensor, Option<Tensor>) {
        let bias = self.0.get(&format!("{name}.bias")).cloned();
        (self.get(&format!("{name}.weight")), bias)
    }

    pub fn linear(&self, name: &str) -> Linear {
        let (weight, bias) = self.weight_and_bias(name);
        Linear::new(weight, bias)
    }
}

/// One folder of `fixtures/peft`.
pub struct Fixture {
    pub name: String,
    pub dir: PathBuf,
    pub base: Weights,
    pub io: Weights,
}

impl Fixture {
    pub fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures/peft")
            .join(name);
        Self {
            name: name.into(),
            base: Weights::read(dir.join("base.safetensors")),
            io: Weights::read(dir.join("io.safetensors")),
            dir,
        }
    }

    pub fn adapter(&self) -> PathBuf {
        self.dir.join("adapter")
    }

    /// The input; token numbers as u32.
    pub fn input(&self) -> Tensor {
        let input = self.io.get("input");
        match input.dtype() {
            DType::I64 => input.to_dtype(DType::U32).unwrap(),
            _ => input,
        }
    }

    pub fn tolerance(&self) -> f64 {
        match self.io.get("output").dtype() {
            DType::BF16 => 2e-2,
            _ => 1e-5,
        }
    }
}

/// `cases.json`: each case with its model's name.
pub fn cases() -> Vec<(String, String)> {
    let cases: Value = serde_json::from_str(include_str!("../fixtures/peft/cases.json")).unwrap();
    let cases = cases.as_object().unwrap().iter();
    cases
        .map(|(name, case)| (name.clone(), case["model"].as_str().unwrap().into()))
        .collect()
}

/// The largest difference, relative to the largest expected value.
pub fn error(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims());
    let wide = |tensor: &Tensor| tensor.detach().to_dtype(DType::F64).unwrap();
    let (actual, expected) = (wide(actual), wide(expected));
    let max = |tensor: Tensor| {
        let max = tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        max.to_scalar::<f64>().unwrap()
    };
    let error = max((actual - &expected).unwrap()) / max(expected).max(1e-30);
    // A comparison with NaN is false: it must not pass for a small error.
    if error.is_nan() { f64::INFINITY } else { error }
}

pub fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor
        .detach()
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap();
    tensor.to_vec1().unwrap()
}

/// An adapter's two files in memory, to be changed and written.
pub struct Files {
    pub config: Value,
    pub weights: Weights,
}

impl Files {
    pub fn read(dir: &Path) -> Self {
        Self {
            config: read_config(dir),
            weights: Weights::read(dir.join("adapter_model.safetensors")),
        }
    }

    pub fn write(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("adapter_config.json"), self.config.to_string()).unwrap();
        let bytes = safetensors::serialize(&self.weights.0, None).unwrap();
        fs::write(dir.join("adapter_model.safetensors"), bytes).unwrap();
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.weights.0.remove(from).unwrap();
        self.weights.0.insert(to.into(), tensor);
    }
}

pub fn read_config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
}

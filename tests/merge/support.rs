//! Fixtures, and small checkpoints and adapters made by hand.

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

pub type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/merge")
}

pub fn adapter(case: &str) -> PathBuf {
    fixtures().join("cases").join(case).join("adapter")
}

/// The base of a model: a file, or a directory for the models of transformers.
pub fn base(model: &str, dtype: &str) -> PathBuf {
    let bases = fixtures().join("bases");
    if model.starts_with("llama") {
        return bases.join(model);
    }
    let suffix = if dtype == "bfloat16" { "_bf16" } else { "" };
    bases.join(format!("{model}{suffix}.safetensors"))
}

/// `cases.json`.
pub fn cases() -> Vec<(String, Value)> {
    let cases: Value = serde_json::from_str(include_str!("../fixtures/merge/cases.json")).unwrap();
    let cases = cases.as_object().unwrap().clone();
    cases.into_iter().collect()
}

pub type Tensors = HashMap<String, Tensor>;

pub fn load(path: impl AsRef<Path>) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// All tensors of a file, or of the files of a directory.
pub fn load_all(path: &Path) -> Tensors {
    if path.is_file() {
        return load(path);
    }
    let mut all = Tensors::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            all.extend(load(path));
        }
    }
    all
}

/// The largest difference, relative to the largest expected value.
pub fn error(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims());
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    let (actual, expected) = (wide(actual), wide(expected));
    let max = |tensor: Tensor| {
        tensor
            .abs()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
    };
    let error = max((actual - &expected).unwrap()) / max(expected).max(1e-30);
    if error.is_nan() { f64::INFINITY } else { error }
}

pub fn tensor(shape: &[usize], value: f32) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| value + i as f32 * 0.25).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A base file and an adapter in a directory of their own.
pub struct Made {
    pub dir: tempfile::TempDir,
    pub base: Tensors,
    pub adapter: Tensors,
    pub config: Value,
}

impl Made {
    /// Of one linear layer `fc`: W (3, 2), rank 1.
    pub fn new() -> Self {
        let named = |tensors: [(&str, Tensor); 2]| -> Tensors {
            tensors
                .into_iter()
                .map(|(k, v)| (k.to_string(), v))
                .collect()
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            base: named([
                ("fc.weight", tensor(&[3, 2], 1.0)),
                ("fc.bias", tensor(&[3], 0.0)),
            ]),
            adapter: named([
                ("base_model.model.fc.lora_A.weight", tensor(&[1, 2], 1.0)),
                ("base_model.model.fc.lora_B.weight", tensor(&[3, 1], 2.0)),
            ]),
            config: json!({
                "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["fc"],
            }),
        }
    }

    pub fn add(&mut self, key: &str, tensor: Tensor) {
        self.adapter
            .insert(format!("base_model.model.{key}"), tensor);
    }

    pub fn remove(&mut self, key: &str) -> Tensor {
        self.adapter
            .remove(&format!("base_model.model.{key}"))
            .unwrap()
    }

    pub fn base_path(&self) -> PathBuf {
        self.dir.path().join("base.safetensors")
    }

    pub fn out(&self) -> PathBuf {
        self.dir.path().join("merged.safetensors")
    }

    pub fn adapter_dir(&self) -> PathBuf {
        self.dir.path().join("adapter")
    }

    pub fn write(&self) {
        let dir = self.adapter_dir();
        fs::create_dir_all(&dir).unwrap();
        candle_core::safetensors::save(&self.base, self.base_path()).unwrap();
        fs::write(dir.join("adapter_config.json"), self.config.to_string()).unwrap();
        candle_core::safetensors::save(&self.adapter, dir.join("adapter_model.safetensors"))
            .unwrap();
    }

    pub fn merge(&self, options: &lora::peft::MergeOptions) -> lora::Result<Tensors> {
        self.write();
        let (base, adapter) = (self.base_path(), self.adapter_dir());
        lora::peft::merge_checkpoint_with(base, adapter, self.out(), options)?;
        Ok(load(self.out()))
    }

    /// Merging fails with these words and writes nothing.
    #[track_caller]
    pub fn refuse(&self, words: &[&str]) {
        let problem = self.merge(&lora::peft::MergeOptions::new()).unwrap_err();
        let problem = problem.to_string();
        for word in words {
            assert!(problem.contains(word), "no `{word}` in: {problem}");
        }
        assert!(!self.out().exists());
        let left = fs::read_dir(self.dir.path()).unwrap().count();
        assert_eq!(left, 2, "a temporary file is left");
    }
}

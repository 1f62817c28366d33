//! Adapters in llama.cpp's format, against a file that the gguf package wrote.

use candle_core::{DType, Device, Tensor};
use lora::peft::{CONFIG_FILE, GgufOptions, WEIGHTS_FILE};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

mod archs;
mod damaged;
mod malformed;
mod merged;
mod values;

pub fn fixture(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf");
    dir.join(name)
}

pub fn options() -> GgufOptions {
    GgufOptions::new("llama").heads(4, 2)
}

pub fn load(path: impl AsRef<Path>) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

pub fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
pub fn same(a: &HashMap<String, Tensor>, b: &HashMap<String, Tensor>, tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (key, a) in a {
        let b = &b[key];
        assert_eq!(a.dims(), b.dims(), "{key}");
        for (a, b) in values(a).into_iter().zip(values(b)) {
            assert!(
                (a - b).abs() <= tolerance * b.abs().max(1.0),
                "{key}: {a} and {b}"
            );
        }
    }
}

/// A directory with PEFT's tensors of the fixture.
pub fn adapter(config: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut all = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 5, "target_modules": ".*"});
    for (key, value) in config.as_object().unwrap() {
        all[key] = value.clone();
    }
    fs::write(dir.path().join(CONFIG_FILE), all.to_string()).unwrap();
    fs::copy(fixture("llama.safetensors"), dir.path().join(WEIGHTS_FILE)).unwrap();
    dir
}

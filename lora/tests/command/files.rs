//! Small files for the tests, and what is in files.

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder that goes when the test ends.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path as an argument.
    pub fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    /// Writes tensors as one file.
    pub fn tensors(&self, name: &str, tensors: &[(&str, Tensor)]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let tensors = tensors
            .iter()
            .map(|(key, tensor)| (*key, tensor.contiguous().unwrap()));
        candle_core::safetensors::save(&tensors.collect::<HashMap<_, _>>(), path).unwrap();
    }

    /// Writes an adapter of PEFT's: settings, and A and B by path.
    pub fn adapter(&self, name: &str, config: &str, layers: &[(&str, Tensor, Tensor)]) {
        let mut tensors = Vec::new();
        for (path, a, b) in layers {
            let key = |part: &str| format!("base_model.model.{path}.{part}.weight");
            tensors.extend([(key("lora_A"), a.clone()), (key("lora_B"), b.clone())]);
        }
        let tensors: Vec<(&str, Tensor)> = tensors
            .iter()
            .map(|(key, tensor)| (key.as_str(), tensor.clone()))
            .collect();
        self.tensors(&format!("{name}/adapter_model.safetensors"), &tensors);
        let config = format!(r#"{{"peft_type": "LORA", {config}}}"#);
        fs::write(self.path(name).join("adapter_config.json"), config).unwrap();
    }
}

/// Values between −1 and 1 that a seed decides.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let count: usize = shape.iter().product();
    let values = (0..count).map(|_| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    });
    Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

/// A matrix of these rows.
pub fn rows<const N: usize>(rows: &[[f32; N]]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), N), &Device::Cpu).unwrap()
}

pub fn read(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// s·B·A of a layer in a folder of PEFT's.
pub fn update(dir: &Path, path: &str, scaling: f64) -> Tensor {
    let tensors = read(&dir.join("adapter_model.safetensors"));
    let get = |part: &str| {
        let tensor = &tensors[&format!("base_model.model.{path}.{part}.weight")];
        tensor
            .to_dtype(DType::F64)
            .unwrap()
            .flatten_from(1)
            .unwrap()
    };
    (get("lora_B").matmul(&get("lora_A")).unwrap() * scaling).unwrap()
}

/// ‖a − b‖ / ‖b‖.
pub fn error(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |tensor: &Tensor| {
        let wide = tensor.to_dtype(DType::F64).unwrap();
        wide.sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
            .sqrt()
    };
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
    norm(&(wide(a) - wide(b)).unwrap()) / norm(b)
}

/// The one line of JSON that a command printed.
pub fn json(stdout: &[u8]) -> Value {
    let text = String::from_utf8(stdout.to_vec()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

//! Any two files as an adapter: loading it into a small model is an error, or gives a model that is
//! saved and loaded again. The input is the configuration, a zero byte, and the weights; without a
//! zero byte it is the weights, under a configuration that is right.
#![no_main]

use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, Linear};
use libfuzzer_sys::fuzz_target;
use lora::peft::{CONFIG_FILE, WEIGHTS_FILE};
use lora::{LoraModel, LoraModule};
use std::sync::LazyLock;
use tempfile::TempDir;

#[derive(Clone, Debug, LoraModel)]
struct Net {
    embed: Embedding,
    fc1: Linear,
    fc2: Linear,
}

/// Holds the adapter and what is saved of it.
static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a directory"));

const CONFIG: &[u8] = include_bytes!("../seeds/config.json");

fn model() -> Net {
    let zeros = |shape: (usize, usize)| {
        Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("a small tensor")
    };
    Net {
        embed: Embedding::new(zeros((6, 4)), 4),
        fc1: Linear::new(zeros((5, 4)), None),
        fc2: Linear::new(zeros((4, 5)), None),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (config, weights) = match bytes.first() {
        Some(b'{') => {
            let end = bytes.iter().position(|byte| *byte == 0);
            let (config, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            (config, rest.get(1..).unwrap_or_default())
        }
        _ => (CONFIG, bytes),
    };
    let dir = DIR.path().join("adapter");
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join(CONFIG_FILE), config).expect("written");
    std::fs::write(dir.join(WEIGHTS_FILE), weights).expect("written");
    let base = model();
    let Ok(lora) = base.with_adapter(&dir) else {
        return;
    };
    let saved = DIR.path().join("saved");
    if lora.save_adapter(&saved).is_ok() {
        base.with_adapter(&saved).expect("what was saved loads");
    }
});

//! Models in GGUF files with damage at random places: an error, or a model, but never a panic. The fuzz target
//! `model_gguf` searches further, from the same files.

use candle_core::{DType, Device, Tensor};
use lora::models::Options;
use lora::models::decoder::from_gguf;
use lora::peft::{CONFIG_FILE, MergeOptions, WEIGHTS_FILE, merge_checkpoint, merge_gguf_with};
use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Steps of a fixed sequence.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % most.max(1)
    }
}

/// Numbers at which readers break.
const EDGES: [u64; 10] = [
    0,
    1,
    2,
    255,
    1 << 16,
    1 << 31,
    1 << 32,
    1 << 62,
    u64::MAX - 1,
    u64::MAX,
];

/// A few changes, most of them in the header.
fn damage(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..1 + numbers.below(3) {
        let within = match numbers.below(4) {
            0 => bytes.len(),
            _ => bytes.len().min(2000),
        };
        let at = numbers.below(within);
        match numbers.below(6) {
            0 => bytes[at] = numbers.below(256) as u8,
            1 => bytes[at] ^= 1 << numbers.below(8),
            2 if bytes.len() > at + 8 => {
                let edge = EDGES[numbers.below(EDGES.len())].to_le_bytes();
                let size = if numbers.below(2) == 0 { 4 } else { 8 };
                bytes[at..at + size].copy_from_slice(&edge[..size]);
            }
            3 if bytes.len() > at + 64 => {
                // A piece of the header at another place.
                let from = numbers.below(bytes.len() - 32);
                let piece = bytes[from..from + 32].to_vec();
                bytes[at..at + 32].copy_from_slice(&piece);
            }
            4 if bytes.len() > 64 => bytes.truncate(bytes.len() - 1 - numbers.below(64)),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

fn adapter(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}"#;
    fs::write(dir.join(CONFIG_FILE), config).unwrap();
    let ones = |shape: (usize, usize)| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let module = "base_model.model.model.layers.0.self_attn.q_proj";
    let tensors = HashMap::from([
        (format!("{module}.lora_A.weight"), ones((1, 32))),
        (format!("{module}.lora_B.weight"), ones((8, 1))),
    ]);
    candle_core::safetensors::save(&tensors, dir.join(WEIGHTS_FILE)).unwrap();
}

/// All that reads a model; what is merged into a file is read again.
fn read(dir: &Path) {
    let (base, out) = (dir.join("model.gguf"), dir.join("merged.gguf"));
    let model = from_gguf(&base, &Options::new());
    if let Ok(created) = &model
        && created.config.hidden_size * created.config.layers.len() < 1 << 20
    {
        let ids = Tensor::new(&[[0i64, 0]], &Device::Cpu).unwrap();
        let _ = created.model.forward(&ids, None);
    }
    let options = MergeOptions::new().untie(true);
    if merge_gguf_with(&base, dir.join("adapter"), &out, &options).is_ok() && model.is_ok() {
        from_gguf(&out, &Options::new()).unwrap();
    }
    let _ = merge_checkpoint(&base, dir.join("adapter"), dir.join("merged"));
}

#[test]
fn damaged_models_are_errors() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/model_gguf");
    let dir = tempfile::tempdir().unwrap();
    adapter(&dir.path().join("adapter"));
    let names = ["llama", "mixtral", "qwen3", "qwen3moe"];
    let files: Vec<Vec<u8>> = names
        .iter()
        .map(|name| fs::read(seeds.join(name)).unwrap())
        .collect();
    // As they are, all are models that take the adapter.
    for file in &files {
        fs::write(dir.path().join("model.gguf"), file).unwrap();
        from_gguf(dir.path().join("model.gguf"), &Options::new()).unwrap();
        read(dir.path());
        assert!(dir.path().join("merged/config.json").is_file());
        fs::remove_file(dir.path().join("merged/config.json")).unwrap();
    }
    // For a longer search: seconds, and the first number.
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds: Option<u64> = number("LORA_DAMAGE_SECONDS");
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first: u64 = number("LORA_DAMAGE_FIRST").unwrap_or(1);
    for case in first.. {
        match end {
            Some(end) if Instant::now() > end => {
                println!("{} damaged files were read", case - first);
                break;
            }
            None if case >= first + 400 => break,
            _ => {}
        }
        let mut numbers = Numbers(case.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut bytes = files[case as usize % files.len()].clone();
        damage(&mut bytes, &mut numbers);
        fs::write(dir.path().join("model.gguf"), bytes).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| read(dir.path())));
        assert!(result.is_ok(), "LORA_DAMAGE_FIRST={case} panics");
    }
}

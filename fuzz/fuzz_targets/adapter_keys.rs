//! Any lines as the keys of an adapter's tensors: loading and merging it are errors, or give the same
//! model. A line that begins with `>` is a rule of the caller's, `> from > to`; one that begins with
//! `=` a target of the configuration.
#![no_main]

use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, Linear};
use libfuzzer_sys::fuzz_target;
use lora::peft::{AdapterDir, CONFIG_FILE, GgufOptions, WEIGHTS_FILE, adapter_to_gguf};
use lora::peft::{MergeOptions, merge_checkpoint_with};
use lora::{LoraModel, LoraModule};
use std::collections::HashMap;
use std::sync::LazyLock;
use tempfile::TempDir;

#[derive(Clone, Debug, LoraModel)]
struct Block {
    fc1: Linear,
    fc2: Linear,
}

#[derive(Clone, Debug, LoraModel)]
struct Inner {
    embed_tokens: Embedding,
    layers: Vec<Block>,
}

#[derive(Clone, Debug, LoraModel)]
struct Net {
    model: Inner,
    lm_head: Linear,
}

static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a directory"));

const SIDE: usize = 4;

fn ones(shape: (usize, usize)) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).expect("a small tensor")
}

fn net() -> Net {
    let linear = || Linear::new(ones((SIDE, SIDE)), None);
    let block = || Block { fc1: linear(), fc2: linear() };
    let embed_tokens = Embedding::new(ones((SIDE, SIDE)), SIDE);
    let layers = vec![block(), block()];
    Net { model: Inner { embed_tokens, layers }, lm_head: linear() }
}

/// A matrix of rank 1 where the key says A or B, else one of the model's shape.
fn tensor(key: &str) -> Tensor {
    match key {
        _ if key.contains("_A") => ones((1, SIDE)),
        _ if key.contains("_B") => ones((SIDE, 1)),
        _ => ones((SIDE, SIDE)),
    }
}

fuzz_target!(|text: &str| {
    let dir = DIR.path().join("adapter");
    std::fs::create_dir_all(&dir).expect("a directory");
    let mut source = AdapterDir::new(&dir).report(|_| {}).trained_embeddings(true).grow_vocabulary(true);
    let (mut tensors, mut targets) = (HashMap::new(), vec!["fc1".to_string()]);
    for line in text.lines().take(64) {
        if let Some(rule) = line.strip_prefix('>') {
            let (from, to) = rule.split_once('>').unwrap_or((rule, ""));
            source = source.rename(from, to);
        } else if let Some(target) = line.strip_prefix('=') {
            targets.push(target.into());
        } else {
            tensors.insert(line.to_string(), tensor(line));
        }
    }
    let targets = targets.iter().map(|target| format!("{target:?}")).collect::<Vec<_>>().join(",");
    let config = format!(r#"{{"peft_type":"LORA","r":1,"target_modules":[{targets}]}}"#);
    std::fs::write(dir.join(CONFIG_FILE), config).expect("written");
    candle_core::safetensors::save(&tensors, dir.join(WEIGHTS_FILE)).expect("written");

    let base = net();
    if let Ok(model) = base.with_adapter(source.clone()) {
        let saved = DIR.path().join("saved");
        if model.save_adapter(&saved).is_ok() {
            base.with_adapter(&saved).expect("what was saved loads");
        }
    }
    let path = |name: &str| DIR.path().join(name);
    let frozen = base.to_frozen().expect("a model").named_params();
    let weights: HashMap<String, Tensor> = frozen.into_iter().map(|p| (p.path, p.tensor)).collect();
    candle_core::safetensors::save(&weights, path("base.safetensors")).expect("written");
    let options = MergeOptions::new().fan_in_fan_out(false).new_tensors(true);
    let _ = merge_checkpoint_with(path("base.safetensors"), source.clone(), path("m.safetensors"), &options);
    let _ = adapter_to_gguf(source, path("a.gguf"), &GgufOptions::new("qwen2"));
});

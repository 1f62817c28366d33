//! Any bytes as a model in a GGUF file. Its decoder, its tokenizer, the directory and the file that an adapter
//! is merged into: each is an error, or works and can be read again.
#![no_main]

use candle_core::{DType, Device, Tensor};
use libfuzzer_sys::fuzz_target;
use lora::models::Options;
use lora::models::decoder::from_gguf;
use lora::peft::{CONFIG_FILE, MergeOptions, WEIGHTS_FILE};
use lora::peft::{merge_checkpoint, merge_gguf, merge_gguf_with};
use lora::text::Tokenizer;
use std::collections::HashMap;
use std::sync::LazyLock;
use tempfile::TempDir;

/// Holds the model, an adapter, and what is merged.
static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).expect("a directory");
    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj", "embed_tokens"]}"#;
    std::fs::write(adapter.join(CONFIG_FILE), config).expect("written");
    let ones = |shape: (usize, usize)| {
        Tensor::ones(shape, DType::F32, &Device::Cpu).expect("a small tensor")
    };
    let module = "base_model.model.model";
    let tensors = HashMap::from([
        (format!("{module}.layers.0.self_attn.q_proj.lora_A.weight"), ones((1, 32))),
        (format!("{module}.layers.0.self_attn.q_proj.lora_B.weight"), ones((8, 1))),
        (format!("{module}.embed_tokens.lora_embedding_A"), ones((1, 4))),
        (format!("{module}.embed_tokens.lora_embedding_B"), ones((32, 1))),
    ]);
    candle_core::safetensors::save(&tensors, adapter.join(WEIGHTS_FILE)).expect("written");
    dir
});

/// More values than a pass over a small file takes.
const LARGE: usize = 1 << 22;

fuzz_target!(|bytes: &[u8]| {
    let path = |name: &str| DIR.path().join(name);
    let base = path("model.gguf");
    std::fs::write(&base, bytes).expect("written");
    let decoder = from_gguf(&base, &Options::new());
    if let Ok(created) = &decoder {
        let config = &created.config;
        let width = config.hidden_size.max(config.num_attention_heads * config.head_dim);
        if width.saturating_mul(config.layers.len()) < LARGE {
            let ids = Tensor::new(&[[0i64, 0]], &Device::Cpu).expect("a small tensor");
            let _ = created.model.forward(&ids, None);
        }
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&base)
        && let Ok(encoding) = tokenizer.encode("a b\n世 <s>")
    {
        let _ = tokenizer.decode(&encoding.ids);
    }
    let (out, adapter) = (path("merged.gguf"), path("adapter"));
    if merge_gguf(&base, &adapter, &out).is_ok() && decoder.is_ok() {
        from_gguf(&out, &Options::new()).expect("what was merged can be read");
    }
    let untie = MergeOptions::new().untie(true);
    if merge_gguf_with(&base, &adapter, &out, &untie).is_ok() && decoder.is_ok() {
        from_gguf(&out, &Options::new()).expect("what was merged can be read");
    }
    let _ = merge_checkpoint(&base, &adapter, path("merged"));
});

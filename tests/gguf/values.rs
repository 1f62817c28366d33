//! Values, their order and their scale, there and back.

use super::{adapter, fixture, load, options, same, values};
use candle_core::{DType, Device, Tensor};
use lora::peft::{
    AdapterConfig, AdapterDir, GgufOptions, WEIGHTS_FILE, adapter_to_gguf, gguf_to_adapter,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

#[test]
fn llama_cpps_file_has_pefts_values() {
    let dir = tempfile::tempdir().unwrap();
    gguf_to_adapter(fixture("llama.gguf"), dir.path(), &options()).unwrap();
    let (read, expected) = (
        load(dir.path().join(WEIGHTS_FILE)),
        load(fixture("llama.safetensors")),
    );
    same(&read, &expected, 1e-7);
    let v = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight";
    assert_eq!(read[v].dtype(), DType::F16);
    let config = AdapterConfig::read(dir.path()).unwrap();
    assert_eq!((config.r, config.lora_alpha), (2, 5.0));
    assert!(config.rank_pattern.is_empty() && config.alpha_pattern.is_empty());
    assert_eq!(config.to_lora_config().unwrap().rank, 2);
}

#[test]
fn there_and_back() {
    let dir = adapter(json!({"base_model_name_or_path": "a/b"}));
    let out = tempfile::tempdir().unwrap();
    let (gguf, back) = (out.path().join("x.gguf"), out.path().join("back"));
    for (dtype, tolerance) in [(DType::F32, 0.0), (DType::F16, 1e-3), (DType::BF16, 1e-2)] {
        adapter_to_gguf(dir.path(), &gguf, &options().dtype(dtype)).unwrap();
        gguf_to_adapter(&gguf, &back, &options()).unwrap();
        let (a, b) = (
            load(dir.path().join(WEIGHTS_FILE)),
            load(back.join(WEIGHTS_FILE)),
        );
        same(&b, &a, tolerance);
        assert!(b.values().all(|tensor| tensor.dtype() == dtype));
    }
    let config = AdapterConfig::read(&back).unwrap();
    assert_eq!(config.base_model_name_or_path.as_deref(), Some("a/b"));
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 2);
}

/// Without heads the queries cannot be read; other architectures keep the order.
#[test]
fn the_order_of_rows() {
    let out = tempfile::tempdir().unwrap();
    let (gguf, back) = (out.path().join("x.gguf"), out.path().join("back"));
    for (heads, word) in [
        (GgufOptions::new("llama"), "`heads`"),
        (options().heads(5, 5), "5 heads"),
    ] {
        let error = gguf_to_adapter(fixture("llama.gguf"), &back, &heads)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(word) && error.contains("blk.1.attn_k"),
            "{error}"
        );
    }
    let dir = adapter(json!({}));
    adapter_to_gguf(dir.path(), &gguf, &GgufOptions::new("qwen2")).unwrap();
    gguf_to_adapter(&gguf, &back, &GgufOptions::default()).unwrap();
    same(
        &load(back.join(WEIGHTS_FILE)),
        &load(fixture("llama.safetensors")),
        0.0,
    );
    let error = gguf_to_adapter(&gguf, &back, &options())
        .unwrap_err()
        .to_string();
    assert!(error.contains("qwen2, not that of the options"), "{error}");
}

/// GGUF has one alpha: B takes up the rest, so that each layer's product is the same.
#[test]
fn other_scalings_go_into_b() {
    let out = tempfile::tempdir().unwrap();
    let (gguf, back) = (out.path().join("x.gguf"), out.path().join("back"));
    for (config, of_q, of_v) in [
        (
            json!({"use_rslora": true}),
            5.0 / 2f64.sqrt(),
            5.0 / 2f64.sqrt(),
        ),
        (json!({"alpha_pattern": {"q_proj": 3}}), 1.5, 2.5),
        (
            json!({"lora_alpha": 0, "alpha_pattern": {"q_proj": 3}}),
            1.5,
            0.0,
        ),
    ] {
        let dir = adapter(config);
        adapter_to_gguf(dir.path(), &gguf, &options()).unwrap();
        gguf_to_adapter(&gguf, &back, &options()).unwrap();
        let config = AdapterConfig::read(&back).unwrap();
        let scaling = config.lora_alpha / config.r as f64;
        let (a, b) = (
            load(dir.path().join(WEIGHTS_FILE)),
            load(back.join(WEIGHTS_FILE)),
        );
        for (name, wanted) in [("q_proj", of_q), ("v_proj", of_v)] {
            let key = format!("base_model.model.model.layers.1.self_attn.{name}.lora_B.weight");
            for (a, b) in values(&a[&key]).into_iter().zip(values(&b[&key])) {
                assert!((a * wanted - b * scaling).abs() < 1e-6, "{key}: {a}, {b}");
            }
        }
    }
}

#[test]
fn what_gguf_cannot_hold_is_named() {
    let out = tempfile::tempdir().unwrap();
    let gguf = out.path().join("x.gguf");
    let refuse = |dir: &Path, options: &GgufOptions, words: &[&str]| {
        let error = adapter_to_gguf(dir, &gguf, options)
            .unwrap_err()
            .to_string();
        for word in words {
            assert!(error.contains(word), "no `{word}` in {error}");
        }
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    };
    let dir = adapter(
        json!({"use_dora": true, "modules_to_save": ["x"], "bias": "all", "kasa_config": {"x": 1}}),
    );
    refuse(
        dir.path(),
        &options(),
        &["use_dora", "modules_to_save", "`bias`", "KaSA"],
    );
    let dir = adapter(json!({"trainable_token_indices": [1], "init_lora_weights": "pissa"}));
    refuse(
        dir.path(),
        &options(),
        &["trainable_token_indices", "init_lora_weights"],
    );
    refuse(dir.path(), &GgufOptions::new("opt"), &["opt", "qwen3"]);
    refuse(dir.path(), &options().dtype(DType::U8), &["U8"]);
    let dir = adapter(json!({"r": 3}));
    refuse(
        dir.path(),
        &options(),
        &["layers.0.mlp.up_proj` has rank 2, but 3 in the configuration"],
    );

    let dir = adapter(json!({}));
    let path = dir.path().join(WEIGHTS_FILE);
    let mut tensors = load(&path);
    let key = |rest: &str| format!("base_model.model.{rest}");
    tensors.remove(&key("lm_head.lora_A.weight"));
    let one = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
    for name in [
        "fc1.lora_A.weight",
        "fc1.lora_B.weight",
        "model.norm.weight",
    ] {
        tensors.insert(key(name), one.clone());
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
    refuse(
        dir.path(),
        &options(),
        &[
            "`lm_head` lacks",
            "`fc1` has no known name",
            "`model.norm.weight` is neither",
        ],
    );
    let large = (&one * 1e6).unwrap();
    let tensors = HashMap::from([
        (key("lm_head.lora_A.weight"), one),
        (key("lm_head.lora_B.weight"), large),
    ]);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    refuse(
        dir.path(),
        &options().dtype(DType::F16),
        &["lm_head", "not finite in F16"],
    );
}

#[test]
fn options_of_a_models_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let read = |config: Value| {
        fs::write(&path, config.to_string()).unwrap();
        GgufOptions::from_model_config(&path)
    };
    let heads =
        json!({"model_type": "mistral", "num_attention_heads": 8, "num_key_value_heads": 2});
    assert_eq!(
        read(heads.clone()).unwrap(),
        GgufOptions::new("llama").heads(8, 2).tied(false)
    );
    let nested = json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_attention_heads": 4}});
    assert_eq!(
        read(nested).unwrap(),
        GgufOptions::new("gemma3").heads(4, 4).tied(true)
    );
    let moe = json!({"model_type": "qwen3_moe", "num_experts": 128, "tie_word_embeddings": true});
    let expected = GgufOptions::new("qwen3moe").experts(128).tied(true);
    assert_eq!(read(moe).unwrap(), expected);
    // Falcon's first models have one head of keys, whatever their configuration names.
    for (more, kv_heads) in [
        (json!({"multi_query": true}), 1),
        (json!({"multi_query": false}), 8),
        (
            json!({"new_decoder_architecture": true, "num_kv_heads": 2}),
            2,
        ),
    ] {
        let mut falcon = json!({"model_type": "falcon", "num_attention_heads": 8});
        let more = more.as_object().unwrap().clone();
        falcon.as_object_mut().unwrap().extend(more);
        let expected = GgufOptions::new("falcon").heads(8, kv_heads).tied(true);
        assert_eq!(read(falcon).unwrap(), expected);
    }
    let error = read(json!({"model_type": "opt"})).unwrap_err().to_string();
    assert!(error.contains("opt") && error.contains("llama"), "{error}");
}

/// Names of adapters in the keys, and prefixes that moved, are understood without a model. The settings
/// still mean the layers that they meant.
#[test]
fn keys_of_other_tools() {
    let pattern = r"^model\.layers\.0\.self_attn\.v_proj";
    let dir = adapter(json!({"alpha_pattern": {pattern: 7}}));
    let out = tempfile::tempdir().unwrap();
    let (gguf, back) = (out.path().join("x.gguf"), out.path().join("back"));
    let convert = || {
        let heard = AdapterDir::new(dir.path()).report(|_| {});
        adapter_to_gguf(heard, &gguf, &options()).unwrap();
        gguf_to_adapter(&gguf, &back, &options()).unwrap();
        load(back.join(WEIGHTS_FILE))
    };
    let (weights, expected) = (load(dir.path().join(WEIGHTS_FILE)), convert());
    let v = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight";
    assert_ne!(values(&weights[v]), values(&expected[v]));
    for (from, to) in [
        (".weight", ".default.weight"),
        ("base_model.model.model.", ""),
        ("base_model.model.model.", "module.base_model.model.model."),
        (
            "base_model.model.model.",
            "base_model.model._orig_mod.model.",
        ),
        ("base_model.model.model.", "base_model.model.module.model."),
    ] {
        let tensors = weights
            .iter()
            .map(|(key, tensor)| (key.replace(from, to), tensor.clone()));
        let tensors: HashMap<String, Tensor> = tensors.collect();
        candle_core::safetensors::save(&tensors, dir.path().join(WEIGHTS_FILE)).unwrap();
        same(&convert(), &expected, 0.0);
    }
}

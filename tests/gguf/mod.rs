//! Adapters in llama.cpp's format, against a file that the gguf package wrote.

use candle_core::{DType, Device, Tensor};
use lora::peft::{
    AdapterConfig, CONFIG_FILE, GgufOptions, WEIGHTS_FILE, adapter_to_gguf, gguf_to_adapter,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf");
    dir.join(name)
}

fn options() -> GgufOptions {
    GgufOptions::new("llama").heads(4, 2)
}

fn load(path: impl AsRef<Path>) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn same(a: &HashMap<String, Tensor>, b: &HashMap<String, Tensor>, tolerance: f64) {
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
fn adapter(config: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut all = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 5, "target_modules": ".*"});
    for (key, value) in config.as_object().unwrap() {
        all[key] = value.clone();
    }
    fs::write(dir.path().join(CONFIG_FILE), all.to_string()).unwrap();
    fs::copy(fixture("llama.safetensors"), dir.path().join(WEIGHTS_FILE)).unwrap();
    dir
}

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
    refuse(dir.path(), &GgufOptions::new("gpt2"), &["gpt2", "qwen3"]);
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
        GgufOptions::new("llama").heads(8, 2)
    );
    let nested = json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_attention_heads": 4}});
    assert_eq!(
        read(nested).unwrap(),
        GgufOptions::new("gemma3").heads(4, 4)
    );
    let error = read(json!({"model_type": "gpt2"})).unwrap_err().to_string();
    assert!(error.contains("gpt2") && error.contains("llama"), "{error}");
}

/// A file of these fields and tensors: names, shapes, types, starts.
fn file(
    fields: &[(&str, u32, &[u8])],
    tensors: &[(&str, &[u64], u32, u64)],
    data: usize,
) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((fields.len() as u64).to_le_bytes());
    let text = |bytes: &mut Vec<u8>, text: &[u8]| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text);
    };
    for (key, kind, value) in fields {
        text(&mut bytes, key.as_bytes());
        bytes.extend(kind.to_le_bytes());
        match kind {
            8 => text(&mut bytes, value),
            _ => bytes.extend(*value),
        }
    }
    for (name, shape, kind, start) in tensors {
        text(&mut bytes, name.as_bytes());
        bytes.extend((shape.len() as u32).to_le_bytes());
        for n in *shape {
            bytes.extend(n.to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        bytes.extend(start.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    bytes
}

const FIELDS: [(&str, u32, &[u8]); 3] = [
    ("general.type", 8, b"adapter"),
    ("adapter.type", 8, b"lora"),
    ("general.architecture", 8, b"qwen2"),
];

#[test]
fn malformed_files() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("x.gguf"), dir.path().join("out"));
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        gguf_to_adapter(&path, &out, &GgufOptions::default())
    };
    let (a, b) = ("output.weight.lora_a", "output.weight.lora_b");
    let good = [(a, &[4u64, 2][..], 0, 0), (b, &[2, 3], 0, 32)];
    read(&file(&FIELDS, &good, 64)).unwrap();
    // A missing alpha is a scaling of 1; a trailing dimension of 1 may be absent.
    let config = AdapterConfig::read(&out).unwrap();
    assert_eq!((config.r, config.lora_alpha), (2, 2.0));
    read(&file(&FIELDS, &[(a, &[4], 0, 0), (b, &[1, 3], 0, 32)], 64)).unwrap();
    fs::remove_dir_all(&out).unwrap();

    let max = u64::MAX;
    let with = |key, kind, value| [&FIELDS[..], &[(key, kind, value)]].concat();
    let nested = [[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]; 1000].concat();
    let many = [&0u32.to_le_bytes()[..], &max.to_le_bytes()].concat();
    let words = [&8u32.to_le_bytes()[..], &(max / 8).to_le_bytes()].concat();
    for (bytes, word) in [
        (b"GGUF".to_vec(), "ends within its header"),
        (b"GGML\x03\0\0\0".to_vec(), "is no GGUF file"),
        (b"GGUF\x01\0\0\0".to_vec(), "version 1"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        (
            [&b"GGUF\x03\0\0\0"[..], &[0xff; 16]].concat(),
            "fields, more than it can hold",
        ),
        (
            file(&with("general.alignment", 4, &[0; 4]), &good, 64),
            "power of two",
        ),
        (
            file(&with("general.alignment", 4, &[24, 0, 0, 0]), &good, 64),
            "power of two",
        ),
        (
            file(&with("general.alignment", 8, b"32"), &good, 64),
            "power of two",
        ),
        (
            file(&with("general.type", 8, b"x"), &good, 64),
            "`general.type` comes twice",
        ),
        (file(&with("x", 99, b""), &good, 64), "type 99"),
        (
            file(&with("x", 9, &many), &good, 64),
            "more than it can hold",
        ),
        (
            file(&with("x", 9, &words), &good, 64),
            "more than it can hold",
        ),
        (
            file(&with("x", 9, &nested), &good, 64),
            "lists within lists",
        ),
        (
            file(
                &with("adapter.lora.alpha", 6, &f32::NAN.to_le_bytes()),
                &good,
                64,
            ),
            "alpha",
        ),
        (
            file(&with("adapter.lora.alpha", 8, b"2"), &good, 64),
            "alpha",
        ),
        (
            file(
                &with("adapter.alora.invocation_tokens", 4, &[0; 4]),
                &good,
                64,
            ),
            "activated LoRA",
        ),
        (file(&FIELDS[..2], &good, 64), "architecture"),
        (file(&FIELDS[1..], &good, 64), "no LoRA adapter"),
        (file(&FIELDS, &[], 64), "holds no layer"),
        (file(&FIELDS, &good, 40), "ends outside the file"),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 0, 0)], 64),
            "lies in the data",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 0, 8)], 64),
            "no multiple of 32",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 0, max - 31)], 64),
            "ends outside the file",
        ),
        (file(&FIELDS, &[good[0], good[0]], 64), "comes twice"),
        (file(&FIELDS, &good[..1], 64), "has A, but no B"),
        (
            file(&FIELDS, &[good[0], (b, &[3, 2], 0, 32)], 64),
            "rank 2 in A, 3 in B",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3, 2], 0, 32)], 64),
            "no matrix",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 0], 0, 32)], 64),
            "no matrix",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2; 5], 0, 32)], 64),
            "5 dimensions",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[], 0, 32)], 64),
            "0 dimensions",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[max, max], 0, 32)], 64),
            "cannot hold",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[1 << 40, 1], 0, 32)], 64),
            "cannot hold",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 8, 32)], 64),
            "cannot hold",
        ),
        (
            file(&FIELDS, &[good[0], (b, &[2, 3], 12, 32)], 64),
            "data type 12",
        ),
        (
            file(&FIELDS, &[good[0], ("../x.lora_b", &[2, 3], 0, 32)], 64),
            "`../x.lora_b` is neither",
        ),
        (
            file(
                &FIELDS,
                &[good[0], ("blk.1.x.weight.lora_b", &[2, 3], 0, 32)],
                64,
            ),
            "no known layer",
        ),
    ] {
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(word), "no `{word}` in {error}");
        assert!(error.len() < 2000, "{error}");
    }
    let mut nan = file(&FIELDS, &good, 64);
    let end = nan.len();
    nan[end - 32..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = read(&nan).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
    assert!(!out.exists());
}

/// Every cut and every changed byte of a header is an error or an adapter.
#[test]
fn changed_bytes_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("x.gguf"), dir.path().join("out"));
    let tensors = [
        ("output.weight.lora_a", &[4u64, 2][..], 0, 0),
        ("output.weight.lora_b", &[2, 3], 0, 32),
    ];
    let good = file(&FIELDS, &tensors, 64);
    for length in 0..good.len() - 8 {
        fs::write(&path, &good[..length]).unwrap();
        assert!(
            gguf_to_adapter(&path, &out, &GgufOptions::default()).is_err(),
            "{length}"
        );
    }
    for place in 0..good.len() - 64 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[place] = value;
            fs::write(&path, &bytes).unwrap();
            let _ = gguf_to_adapter(&path, &out, &GgufOptions::default());
        }
    }
}

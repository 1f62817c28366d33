use crate::files::{Folder, json, random, read, rows};
use crate::{lora, text};
use candle_core::{Device, Tensor};
use serde_json::Value;

fn run(args: &[&str]) -> Value {
    let output = lora(args.iter().copied()).arg("--json").assert().success();
    json(&output.get_output().stdout)
}

const UP: &str = "model.layers.0.mlp.up_proj";
const DOWN: &str = "model.layers.1.mlp.down_proj";

/// Two layers, of two ranks and scalings.
fn adapter(folder: &Folder) {
    folder.adapter(
        "peft",
        r#""r": 2, "lora_alpha": 3, "target_modules": ["up_proj", "down_proj"], "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"down_proj": 1.5}"#,
        &[
            (UP, random(&[2, 4], 1), random(&[6, 2], 2)),
            (DOWN, random(&[3, 6], 3), random(&[4, 3], 4)),
        ],
    );
    folder.tensors(
        "base/model.safetensors",
        &[
            (&format!("{UP}.weight"), random(&[6, 4], 5)),
            (&format!("{DOWN}.weight"), random(&[4, 6], 6)),
        ],
    );
    let config = r#"{"model_type": "qwen2", "num_attention_heads": 2, "num_key_value_heads": 1}"#;
    std::fs::write(folder.path("base/config.json"), config).unwrap();
}

/// From each format to each: the updates stay the same.
#[test]
fn every_format_becomes_every_other() {
    let folder = Folder::new();
    adapter(&folder);
    let base = folder.arg("base");
    let kinds = [
        ("peft", "peft"),
        ("gguf", "adapter.gguf"),
        ("kohya", "kohya.safetensors"),
        ("diffusers", "diffusers.safetensors"),
        ("mlx-lm", "mlx"),
    ];
    for (kind, name) in &kinds[1..] {
        run(&[
            "convert",
            "--to",
            kind,
            "--base",
            &base,
            &folder.arg("peft"),
            &folder.arg(name),
        ]);
    }
    let mut between = 0;
    for (kind, name) in kinds {
        for (other, file) in kinds.iter().filter(|(other, _)| *other != kind) {
            let out = format!("{kind}-to-{file}");
            let args = ["--base", &base, &folder.arg(name), &folder.arg(&out)];
            let report = run(&[&["convert", "--to", other][..], &args].concat());
            assert_ne!(report["from"], report["to"]);
            // Back to PEFT's, where the names are those of the model.
            let mut found = folder.arg(&out);
            if *other != "peft" {
                found = folder.arg(&format!("{out}-back"));
                run(&["convert", "--base", &base, &folder.arg(&out), &found]);
            }
            let diff = run(&["diff", &folder.arg("peft"), &found]);
            let layers = diff["layers"].as_array().unwrap();
            assert_eq!(layers.len(), 2, "{diff}");
            assert!(diff["relative"].as_f64().unwrap() < 1e-6, "{out}: {diff}");
            between += 1;
        }
    }
    assert_eq!(between, 20);
}

/// mlx-lm's files as it writes them.
#[test]
fn mlx_has_its_matrices_turned_and_one_scale() {
    let folder = Folder::new();
    adapter(&folder);
    run(&[
        "convert",
        "--to",
        "mlx-lm",
        &folder.arg("peft"),
        &folder.arg("mlx"),
    ]);
    let config = std::fs::read_to_string(folder.path("mlx/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let parameters = &config["lora_parameters"];
    assert_eq!(
        (&config["fine_tune_type"], &config["num_layers"]),
        (&"lora".into(), &(-1).into())
    );
    assert_eq!(
        (&parameters["rank"], &parameters["scale"]),
        (&3.into(), &1.5.into())
    );
    assert_eq!(
        parameters["keys"],
        serde_json::json!(["mlp.down_proj", "mlp.up_proj"])
    );
    let tensors = read(&folder.path("mlx/adapters.safetensors"));
    let shape = |key: &str| tensors[key].dims().to_vec();
    // The smaller rank is filled up with zeros.
    assert_eq!(shape(&format!("{UP}.lora_a")), [4, 3]);
    assert_eq!(shape(&format!("{UP}.lora_b")), [3, 6]);
}

#[test]
fn what_a_format_cannot_hold_is_named() {
    let folder = Folder::new();
    adapter(&folder);
    let fails = |args: &[&str], words: &[&str]| {
        let output = lora(args.iter().copied()).assert().code(1);
        let printed = text(&output.get_output().stderr);
        for word in words {
            assert!(printed.contains(word), "no `{word}` in {printed}");
        }
    };
    let [peft, out] = ["peft", "out"].map(|name| folder.arg(name));
    fails(&["convert", &peft, &out], &["is of PEFT already"]);
    fails(
        &["convert", "--to", "gguf", &peft, &out],
        &["--arch is missing", "llama"],
    );
    run(&[
        "convert",
        "--to",
        "kohya",
        &peft,
        &folder.arg("kohya.safetensors"),
    ]);
    fails(
        &["convert", &folder.arg("kohya.safetensors"), &out],
        &["--base names the checkpoint", "--modules lists"],
    );
    folder.adapter(
        "saved",
        r#""r": 1, "target_modules": ["a"], "modules_to_save": ["head"]"#,
        &[("a", rows(&[[1.0]]), rows(&[[1.0]]))],
    );
    for kind in ["kohya", "diffusers", "mlx-lm", "gguf"] {
        fails(
            &[
                "convert",
                "--to",
                kind,
                "--arch",
                "llama",
                &folder.arg("saved"),
                &out,
            ],
            &["`modules_to_save`"],
        );
    }
    let conv = |shape: &[usize]| random(shape, 1);
    folder.adapter(
        "conv",
        r#""r": 1, "target_modules": ["a"]"#,
        &[("a", conv(&[1, 2, 3, 3]), conv(&[4, 1, 1, 1]))],
    );
    fails(
        &["convert", "--to", "mlx-lm", &folder.arg("conv"), &out],
        &["`a` is a convolution"],
    );
    fails(
        &["convert", "--to", "diffusers", &folder.arg("base"), &out],
        &["holds no adapter"],
    );
    let magnitude = Tensor::ones(1, candle_core::DType::F32, &Device::Cpu).unwrap();
    folder.adapter(
        "dora",
        r#""r": 1, "use_dora": true, "target_modules": ["a"]"#,
        &[("a", rows(&[[1.0]]), rows(&[[1.0]]))],
    );
    let weights = folder.path("dora/adapter_model.safetensors");
    let mut tensors = read(&weights);
    tensors.insert("base_model.model.a.lora_magnitude_vector".into(), magnitude);
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    fails(
        &["convert", "--to", "kohya", &folder.arg("dora"), &out],
        &["`a` has DoRA"],
    );
    assert!(!folder.path("out").exists());
}

#[test]
fn a_gguf_base_tells_its_architecture() {
    let folder = Folder::new();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/quantised");
    let [base, adapter] = ["llama.gguf", "adapter"].map(|name| format!("{fixtures}/{name}"));
    let [gguf, back] = ["adapter.gguf", "back"].map(|name| folder.arg(name));
    run(&["convert", "--base", &base, &adapter, &gguf]);
    run(&["convert", "--base", &base, &gguf, &back]);
    let found = run(&["diff", &adapter, &back]);
    let relative = found["relative"].as_f64().unwrap();
    assert!(relative < 1e-6, "{found}");
}

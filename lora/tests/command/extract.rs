use crate::files::{Folder, error, json, random, read, rows, update};
use crate::{lora, text};
use candle_core::{DType, Tensor};
use serde_json::Value;

fn run(args: &[&str]) -> Value {
    let output = lora(args.iter().copied()).arg("--json").assert().success();
    json(&output.get_output().stdout)
}

/// A base of a linear layer, a convolution, a norm and an embedding.
fn base(folder: &Folder) -> Vec<(&'static str, Tensor)> {
    let tensors = vec![
        ("embed_tokens.weight", random(&[7, 6], 1)),
        ("h.0.fc.weight", random(&[8, 6], 2)),
        ("h.0.fc.bias", random(&[8], 3)),
        ("h.1.fc.weight", random(&[8, 6], 4)),
        ("h.1.fc.bias", random(&[8], 5)),
        ("conv.weight", random(&[4, 3, 2, 2], 6)),
        ("norm.weight", random(&[6], 7)),
        ("norm.bias", random(&[6], 8)),
    ];
    folder.tensors("base.safetensors", &tensors);
    tensors
}

#[test]
fn the_adapter_that_was_merged_comes_back() {
    let folder = Folder::new();
    base(&folder);
    let conv = (random(&[2, 3, 2, 2], 14), random(&[4, 2, 1, 1], 15));
    folder.adapter(
        "adapter",
        r#""r": 2, "lora_alpha": 3, "target_modules": ["fc", "conv"]"#,
        &[
            ("h.0.fc", random(&[2, 6], 10), random(&[8, 2], 11)),
            ("h.1.fc", random(&[2, 6], 12), random(&[8, 2], 13)),
            ("conv", conv.0, conv.1),
        ],
    );
    let [base, adapter] = ["base.safetensors", "adapter"].map(|name| folder.arg(name));
    let [merged, out] = ["merged.safetensors", "out"].map(|name| folder.arg(name));
    run(&["merge", &base, &merged, "--adapter", &adapter]);
    let report = run(&["extract", &base, &merged, &out, "--rank", "2"]);
    assert!(report["error"].as_f64().unwrap() < 1e-6, "{report}");
    assert_eq!(
        (
            &report["unchanged"],
            report["layers"].as_array().unwrap().len()
        ),
        (&5.into(), 3)
    );
    for path in ["h.0.fc", "h.1.fc", "conv"] {
        let found = update(&folder.path("out"), path, 1.0);
        let expected = update(&folder.path("adapter"), path, 1.5);
        assert!(error(&found, &expected) < 1e-5, "{path}");
    }
    let shapes = read(&folder.path("out/adapter_model.safetensors"));
    let shape = |key: &str| {
        shapes[&format!("base_model.model.conv.{key}.weight")]
            .dims()
            .to_vec()
    };
    assert_eq!(
        (shape("lora_A"), shape("lora_B")),
        (vec![2, 3, 2, 2], vec![4, 2, 1, 1])
    );
    let diff = run(&["diff", &adapter, &out]);
    assert!(diff["relative"].as_f64().unwrap() < 1e-5);
}

/// Differences with the singular values 4, 2, 1 and 4, 0, 0.
#[test]
fn the_rank_follows_from_the_energy() {
    let folder = Folder::new();
    let zero = rows(&[[0.0; 3]; 3]);
    folder.tensors(
        "base.safetensors",
        &[("a.weight", zero.clone()), ("b.weight", zero)],
    );
    folder.tensors(
        "tuned.safetensors",
        &[
            (
                "a.weight",
                rows(&[[0.0, 4.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
            ),
            (
                "b.weight",
                rows(&[[0.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]),
            ),
        ],
    );
    let args = [
        &folder.arg("base.safetensors"),
        &folder.arg("tuned.safetensors"),
        &folder.arg("out"),
    ];
    let report = run(&["extract", args[0], args[1], args[2], "--energy", "0.9"]);
    let layers = report["layers"].as_array().unwrap();
    assert_eq!([&layers[0]["rank"], &layers[1]["rank"]], [2, 1]);
    // 16 + 4 + 1 and 16.
    let near = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-6;
    assert!(near(&layers[0]["error"], (1.0f64 / 21.0).sqrt()) && near(&layers[1]["error"], 0.0));
    assert!(near(&report["error"], (1.0f64 / 37.0).sqrt()));
    let config = std::fs::read_to_string(folder.path("out/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["r"], 2);
    assert_eq!(config["rank_pattern"], serde_json::json!({"^b$": 1}));
    assert_eq!(config["alpha_pattern"], serde_json::json!({"^b$": 1}));

    let output = lora(["extract", args[0], args[1], args[2], "--rank=1"])
        .assert()
        .code(1);
    let printed = text(&output.get_output().stderr);
    let expected = format!(
        "error: {} is there already: name another place, or say --force to write over it\n",
        args[2]
    );
    assert_eq!(printed, expected);
    let output = lora(["extract", args[0], args[1], args[2], "--rank=1", "--force"])
        .assert()
        .success();
    let printed = text(&output.get_output().stdout);
    let expected = format!(
        "\
layer  shape  rank   norm  remains
a      3 × 3     1  4.583   48.8 %
b      3 × 3     1      4      0 %

2 layers written to {}; 0 tensors are the same in both; 36.76 % of the difference remains
",
        args[2]
    );
    assert_eq!(printed, expected);
}

/// What differs beside the weights is kept in full, so that merging gives the tuned model again.
#[test]
fn the_rest_is_kept_in_full() {
    let folder = Folder::new();
    let mut tensors = base(&folder);
    for (name, tensor) in &mut tensors {
        if [
            "h.0.fc.weight",
            "h.1.fc.bias",
            "norm.weight",
            "embed_tokens.weight",
        ]
        .contains(name)
        {
            *tensor = (&*tensor + random(tensor.dims(), 20)).unwrap();
        }
    }
    tensors.push(("score.weight", random(&[2, 6], 21)));
    folder.tensors("tuned.safetensors", &tensors);
    let [base, tuned] = ["base.safetensors", "tuned.safetensors"].map(|name| folder.arg(name));
    let [out, merged] = ["out", "merged.safetensors"].map(|name| folder.arg(name));
    let report = run(&["extract", &base, &tuned, &out, "--rank", "6"]);
    assert_eq!(
        report["modules"],
        serde_json::json!(["embed_tokens", "h.1.fc", "norm", "score"])
    );
    assert_eq!(report["biases"], serde_json::json!([]));
    // h.1.fc has no update of low rank, so that its bias is kept with the module.
    assert_eq!(report["left"], serde_json::json!([]));
    run(&["merge", &base, &merged, "--adapter", &out, "--new-tensors"]);
    let (found, expected) = (
        read(&folder.path("merged.safetensors")),
        read(&folder.path("tuned.safetensors")),
    );
    assert_eq!(found.len(), expected.len());
    for (name, expected) in &expected {
        assert!(error(&found[name], expected) < 1e-6, "{name}");
    }

    let left = folder.arg("left");
    let report = run(&[
        "extract",
        &base,
        &tuned,
        &left,
        "--rank",
        "6",
        "--leave-rest",
    ]);
    let names: Vec<&str> = report["left"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(report["modules"], serde_json::json!([]));

    // An embedding gets an update of low rank if it is named.
    let named = folder.arg("named");
    let report = run(&[
        "extract",
        &base,
        &tuned,
        &named,
        "--rank",
        "6",
        "--target-modules",
        "embed_tokens,fc",
    ]);
    assert_eq!(report["layers"].as_array().unwrap().len(), 2);
    let merged = folder.arg("again.safetensors");
    run(&[
        "merge",
        &base,
        &merged,
        "--adapter",
        &named,
        "--new-tensors",
    ]);
    let found = read(&folder.path("again.safetensors"));
    assert!(
        error(
            &found["embed_tokens.weight"],
            &expected["embed_tokens.weight"]
        ) < 1e-6
    );
}

#[test]
fn biases_of_layers_are_kept() {
    let folder = Folder::new();
    let mut tensors = base(&folder);
    for (name, tensor) in &mut tensors {
        if name.starts_with("h.") {
            *tensor = (&*tensor + random(tensor.dims(), 30)).unwrap();
        }
    }
    folder.tensors("tuned.safetensors", &tensors);
    let [base, tuned] = ["base.safetensors", "tuned.safetensors"].map(|name| folder.arg(name));
    let [out, merged] = ["out", "merged.safetensors"].map(|name| folder.arg(name));
    let report = run(&["extract", &base, &tuned, &out, "--rank", "6"]);
    assert_eq!(report["biases"], serde_json::json!(["h.0.fc", "h.1.fc"]));
    run(&["merge", &base, &merged, "--adapter", &out]);
    let (found, expected) = (
        read(&folder.path("merged.safetensors")),
        read(&folder.path("tuned.safetensors")),
    );
    for (name, expected) in &expected {
        assert!(error(&found[name], expected) < 1e-6, "{name}");
    }
}

#[test]
fn what_gives_no_adapter_is_told() {
    let folder = Folder::new();
    let tensors = base(&folder);
    let base = folder.arg("base.safetensors");
    let out = folder.arg("out");
    let fails = |args: &[&str], words: &[&str]| {
        let output = lora(args.iter().copied()).assert().code(1);
        let printed = text(&output.get_output().stderr);
        for word in words {
            assert!(printed.contains(word), "no `{word}` in {printed}");
        }
        assert!(!folder.path("out").exists());
    };
    fails(&["extract", &base, &base, &out], &["does not differ from"]);
    folder.tensors("fewer.safetensors", &tensors[1..]);
    fails(
        &["extract", &base, &folder.arg("fewer.safetensors"), &out],
        &["lacks `embed_tokens.weight`"],
    );
    let mut tuned = tensors.clone();
    tuned[1].1 = (&tuned[1].1 * 2.0).unwrap();
    folder.tensors("tuned.safetensors", &tuned);
    let tuned_path = folder.arg("tuned.safetensors");
    fails(
        &[
            "extract",
            &base,
            &tuned_path,
            &out,
            "--target-modules",
            "q_proj",
        ],
        &["`q_proj` matches nothing"],
    );
    fails(
        &["extract", &base, &tuned_path, &out, "--energy", "1.5"],
        &["share of energy is 1.5"],
    );
    tuned[1].1 = (&tuned[1].1 * f64::NAN)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    folder.tensors("nan.safetensors", &tuned);
    fails(
        &["extract", &base, &folder.arg("nan.safetensors"), &out],
        &["`h.0.fc.weight` holds values that are not finite"],
    );
}

/// The files of `fixtures/gguf`, whose updates the package gguf checked, under names that say nothing.
fn gguf(folder: &Folder) -> [String; 3] {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/merged");
    for (from, to) in [("base.gguf", "base.bin"), ("merged.gguf", "tuned.weights")] {
        std::fs::copy(format!("{fixtures}/{from}"), folder.path(to)).unwrap();
    }
    let [base, tuned] = ["base.bin", "tuned.weights"].map(|name| folder.arg(name));
    [base, tuned, format!("{fixtures}/adapter")]
}

const LAYERS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// The base in blocks, the tuned model in full precision: the update is exactly the adapter's, with the
/// rows of queries and keys where transformers has them.
#[test]
fn a_gguf_base_gives_the_adapter_back() {
    let folder = Folder::new();
    let [base, _, adapter] = gguf(&folder);
    let [full, out] = ["full", "out"].map(|name| folder.arg(name));
    run(&["merge", &base, &full, "--adapter", &adapter]);
    for (one, two, sign) in [(&base, &full, 1.0), (&full, &base, -1.0)] {
        let report = run(&["extract", one, two, &out, "--rank", "2", "--force"]);
        assert!(report["error"].as_f64().unwrap() < 1e-6, "{report}");
        assert_eq!(report["layers"].as_array().unwrap().len(), 14);
        assert_eq!(report["modules"], serde_json::json!([]));
        for layer in ["0", "1"] {
            for name in LAYERS {
                let path = format!("model.layers.{layer}.{name}");
                let found = update(&folder.path("out"), &path, 1.0);
                let expected = update(std::path::Path::new(&adapter), &path, 2.0 * sign);
                assert!(error(&found, &expected) < 1e-5, "{path}");
            }
        }
    }

    // Beside safetensors, the file has the other's names, and says its own types.
    let found = run(&["diff", &base, &full]);
    assert_eq!(found["only_first"], found["only_second"]);
    let tensors = found["tensors"].as_array().unwrap();
    let named = |name: &str| {
        tensors
            .iter()
            .find(|tensor| tensor["name"] == name)
            .unwrap()
    };
    let query = named("model.layers.0.self_attn.q_proj.weight");
    assert_eq!(query["first"], "Q4_0 [8, 256]");
    assert_eq!(query["second"], "F32 [8, 256]");
    assert_eq!(named("model.norm.weight")["relative"], 0.0);
}

/// Both in blocks: what these rounded is part of the difference, and all that is beside the update. The
/// package gguf measured the rounding.
#[test]
fn two_gguf_files_give_the_update_and_the_rounding() {
    let folder = Folder::new();
    let [base, tuned, adapter] = gguf(&folder);
    let [full, out] = ["full", "out"].map(|name| folder.arg(name));
    run(&["merge", &base, &full, "--adapter", &adapter]);
    let merged = read(&folder.path("full/model.safetensors"));
    let errors = std::path::Path::new(&adapter).with_file_name("errors.json");
    let errors: Value = serde_json::from_slice(&std::fs::read(errors).unwrap()).unwrap();
    let report = run(&["extract", &base, &tuned, &out, "--rank", "8"]);
    assert!(report["error"].as_f64().unwrap() < 1e-6, "{report}");
    assert_eq!(report["layers"].as_array().unwrap().len(), 14);
    let names = [
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ];
    let norm = |tensor: &Tensor| {
        let wide = tensor.to_dtype(DType::F64).unwrap();
        let energy = wide.sqr().unwrap().sum_all().unwrap();
        energy.to_scalar::<f64>().unwrap().sqrt()
    };
    for layer in ["0", "1"] {
        for (name, of_gguf) in LAYERS.iter().zip(names) {
            let path = format!("model.layers.{layer}.{name}");
            let found = update(&folder.path("out"), &path, 1.0);
            let expected = update(std::path::Path::new(&adapter), &path, 2.0);
            let rounded = error(&found, &expected) * norm(&expected);
            let told = errors[format!("blk.{layer}.{of_gguf}.weight")]
                .as_f64()
                .unwrap();
            let told = told * norm(&merged[&format!("{path}.weight")]);
            assert!(
                (rounded - told).abs() <= 1e-3 * told + 1e-5,
                "{path}: {rounded} {told}"
            );
        }
    }
}

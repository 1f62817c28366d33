use crate::files::{Folder, json, random, rows};
use crate::{lora, text};
use candle_core::{DType, Device, Tensor};
use std::process::{Command, Stdio};

/// Norm 10 and singular values 8 and 6 in one layer, 20 times the all-ones matrix in the other.
fn adapter(folder: &Folder) {
    let b = rows(&[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]);
    folder.adapter(
        "adapter",
        r#""r": 2, "lora_alpha": 4, "target_modules": ["fc", "out"], "rank_pattern": {"out": 1}"#,
        &[
            ("h.0.fc", rows(&[[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]), b),
            ("h.1.out", rows(&[[5.0, 5.0, 5.0, 5.0]]), rows(&[[1.0]; 4])),
        ],
    );
}

#[test]
fn an_adapter_is_told_in_numbers() {
    let folder = Folder::new();
    adapter(&folder);
    let output = lora(["inspect", &folder.arg("adapter")]).assert().success();
    let printed = text(&output.get_output().stdout);
    let expected = "\
2 layers, 22 parameters, 88 B; norm of the update 80.62

settings
  lora_alpha      4
  r               2
  rank_pattern    {\"out\":1}
  target_modules  fc, out

layer    out × in  rank  scaling  dtype  norm  largest  effective  99 %
h.0.fc   4 × 3        2        2  F32      10        8       1.98     2
h.1.out  4 × 4        1        4  F32      80       80          1     1

norm of the update by layer
  fc   ▁
  out   █
       from h.0 to h.1; █ is 80
";
    let (head, rest) = printed.split_once('\n').unwrap();
    assert!(head.ends_with("adapter: an adapter of PEFT"), "{head}");
    assert_eq!(rest, expected);

    let output = lora(["inspect", &folder.arg("adapter"), "--json"])
        .assert()
        .success();
    let found = json(&output.get_output().stdout);
    assert_eq!(
        (&found["kind"], &found["format"]),
        (&"adapter".into(), &"PEFT".into())
    );
    assert_eq!(found["layers"][0]["parameters"], 14);
    let norm = found["layers"][0]["update"]["norm"].as_f64().unwrap();
    assert!((norm - 10.0).abs() < 1e-12);
    let effective = found["layers"][0]["update"]["effective_rank"]
        .as_f64()
        .unwrap();
    let entropy = |p: f64| -p * p.ln();
    assert!((effective - (entropy(4.0 / 7.0) + entropy(3.0 / 7.0)).exp()).abs() < 1e-12);
}

#[test]
fn what_is_suspicious_comes_first() {
    let folder = Folder::new();
    let nan = rows(&[[1.0, f32::NAN], [1.0, 1.0]]);
    let ones = || rows(&[[1.0, 1.0], [1.0, 1.0]]);
    folder.adapter(
        "adapter",
        r#""r": 2, "lora_alpha": 4, "target_modules": ["q"], "alpha_pattern": {"d": 0}, "kasa_config": {"a": 1}"#,
        &[
            ("a", ones(), rows(&[[0.0, 0.0], [0.0, 0.0]])),
            ("b", nan, ones()),
            ("c", ones(), rows(&[[1.0, 0.0], [2.0, 0.0]])),
            ("e", rows(&[[1.0, 1.0]]), rows(&[[1.0], [1.0]])),
        ],
    );
    let path = folder.path("adapter/adapter_model.safetensors");
    let mut tensors = crate::files::read(&path);
    tensors.insert("base_model.model.f.lora_A.weight".into(), ones());
    tensors.insert("base_model.model.g.strange".into(), ones());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let output = lora(["inspect", &folder.arg("adapter"), "--json"])
        .assert()
        .success();
    let found = json(&output.get_output().stdout);
    let found: Vec<&str> = found["suspicious"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap())
        .collect();
    assert_eq!(
        found,
        [
            "B of `a` is zero everywhere",
            "`kasa_config` is {\"a\":1}: KaSA is not supported",
            "`e` has rank 1 in its tensors, 2 in the settings",
            "`base_model.model.g.strange` is no part of an adapter, and no setting says that the module is trained in full",
            "A of `b` holds 1 values that are NaN or infinite",
            "`c` uses 1 of its 2 directions: columns 1 of B are zero",
            "`f` has A, but no B",
        ]
    );
    let output = lora(["inspect", &folder.arg("adapter")]).assert().success();
    let printed = text(&output.get_output().stdout);
    assert_eq!(printed.lines().nth(3), Some("suspicious"), "{printed}");

    folder.adapter(
        "zero",
        r#""r": 2, "lora_alpha": 0, "target_modules": ["a"]"#,
        &[("a", ones(), rows(&[[0.0, 0.0]]))],
    );
    let output = lora(["inspect", &folder.arg("zero"), "--json"])
        .assert()
        .success();
    let found = json(&output.get_output().stdout);
    assert_eq!(
        found["suspicious"][0],
        "B is zero in every layer: the adapter does nothing, as before training"
    );
    assert_eq!(
        found["suspicious"][1],
        "`a` has alpha 0: its update is zero"
    );
}

/// The same update has the same norm in every format.
#[test]
fn every_format_is_read() {
    let folder = Folder::new();
    let (a, b) = (random(&[2, 3], 1), random(&[4, 2], 2));
    let path = "model.layers.0.mlp.up_proj";
    folder.adapter(
        "peft",
        r#""r": 2, "lora_alpha": 3, "target_modules": ["up_proj"]"#,
        &[(path, a.clone(), b.clone())],
    );
    let alpha = Tensor::new(3f32, &Device::Cpu).unwrap();
    folder.tensors(
        "kohya.safetensors",
        &[
            ("lora_te_up.lora_down.weight", a.clone()),
            ("lora_te_up.lora_up.weight", b.clone()),
            ("lora_te_up.alpha", alpha.clone()),
        ],
    );
    folder.tensors(
        "diffusers/pytorch_lora_weights.safetensors",
        &[
            ("unet.up.lora.down.weight", a.clone()),
            ("unet.up.lora.up.weight", b.clone()),
            ("unet.up.alpha", alpha),
        ],
    );
    folder.tensors(
        "mlx/adapters.safetensors",
        &[
            ("model.layers.0.mlp.up_proj.lora_a", a.t().unwrap()),
            ("model.layers.0.mlp.up_proj.lora_b", b.t().unwrap()),
        ],
    );
    let config = r#"{"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": {"rank": 2, "scale": 1.5, "dropout": 0.0}}"#;
    std::fs::write(folder.path("mlx/adapter_config.json"), config).unwrap();
    let options = lora::peft::GgufOptions::new("qwen2");
    lora::peft::adapter_to_gguf(
        folder.path("peft").as_path(),
        folder.path("a.gguf"),
        &options,
    )
    .unwrap();
    let formed = b.matmul(&a).unwrap().to_dtype(DType::F64).unwrap();
    let norm = formed
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap()
        .to_scalar::<f64>()
        .unwrap()
        .sqrt()
        * 1.5;
    for (path, format) in [
        ("peft", "PEFT"),
        ("peft/adapter_model.safetensors", "PEFT"),
        ("kohya.safetensors", "kohya"),
        ("diffusers", "diffusers"),
        ("mlx", "mlx-lm"),
        ("a.gguf", "llama.cpp"),
    ] {
        let output = lora(["inspect", &folder.arg(path), "--json"])
            .assert()
            .success();
        let found = json(&output.get_output().stdout);
        assert_eq!(found["format"], format);
        assert_eq!(found["suspicious"].as_array().unwrap().len(), 0, "{found}");
        let found = found["norm"].as_f64().unwrap();
        assert!((found / norm - 1.0).abs() < 1e-6, "{path}: {found} {norm}");
    }
}

#[test]
fn a_checkpoint_is_told_by_kinds_of_tensors() {
    let folder = Folder::new();
    let half = |tensor: Tensor| tensor.to_dtype(DType::BF16).unwrap();
    folder.tensors(
        "model.safetensors",
        &[
            ("h.0.fc.weight", half(rows(&[[3.0, 4.0]]))),
            ("h.1.fc.weight", half(rows(&[[0.0, 12.0]]))),
            ("norm.weight", rows(&[[0.0, 0.0]])),
        ],
    );
    let output = lora(["inspect", &folder.arg("model.safetensors")])
        .assert()
        .success();
    let printed = text(&output.get_output().stdout);
    let (_, rest) = printed.split_once('\n').unwrap();
    let expected = "\
3 tensors, 6 parameters, 16 B: 8 B of F32 (1 tensor), 8 B of BF16 (2 tensors)

suspicious
  - `norm.weight` is zero everywhere

tensors        count  shape  dtype  bytes  norm  largest
norm.weight        1  1 × 2  F32      8 B     0        0
h.*.fc.weight      2  1 × 2  BF16     8 B    13       12
";
    assert_eq!(rest, expected);
    let output = lora([
        "inspect",
        &folder.arg("model.safetensors"),
        "--all",
        "--headers",
    ])
    .assert()
    .success();
    let printed = text(&output.get_output().stdout);
    assert!(
        printed.contains("h.1.fc.weight  1 × 2  BF16     4 B     -        -"),
        "{printed}"
    );
}

/// A folder of a model stays one, whatever lies in its sub-directories.
#[test]
fn a_folder_is_what_lies_directly_in_it() {
    let folder = Folder::new();
    adapter(&folder);
    let output = lora(["inspect", &folder.arg("")]).assert().code(1);
    let printed = text(&output.get_output().stderr);
    assert!(
        printed.contains("there are adapters in its sub-directories adapter"),
        "{printed}"
    );
    folder.tensors("model.safetensors", &[("a.weight", rows(&[[1.0]]))]);
    let output = lora(["inspect", &folder.arg(""), "--json"])
        .assert()
        .success();
    assert_eq!(json(&output.get_output().stdout)["kind"], "checkpoint");
}

#[test]
fn what_is_not_there_is_named() {
    let folder = Folder::new();
    let missing = folder.arg("missing");
    let output = lora(["inspect", &missing]).assert().code(1);
    let printed = text(&output.get_output().stderr);
    assert!(
        printed.starts_with(&format!("error: {missing}: No such file")),
        "{printed}"
    );
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let folder = Folder::new();
    adapter(&folder);
    let mut child = Command::new(env!("CARGO_BIN_EXE_lora"))
        .args(["inspect", &folder.arg("adapter")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stderr).as_str()),
        (Some(141), "")
    );
}

use crate::files::{Folder, error, json, random, read, rows, update};
use crate::{lora, text};
use serde_json::Value;

fn run(args: &[&str]) -> Value {
    let output = lora(args.iter().copied()).arg("--json").assert().success();
    json(&output.get_output().stdout)
}

fn config(dir: &std::path::Path) -> Value {
    let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_same_rank_loses_nothing() {
    let folder = Folder::new();
    folder.adapter(
        "adapter",
        r#""r": 3, "lora_alpha": 4, "use_rslora": true, "target_modules": ["fc", "out"], "rank_pattern": {"out": 2}"#,
        &[
            ("h.0.fc", random(&[3, 6], 10), random(&[8, 3], 11)),
            ("h.0.out", random(&[2, 6], 12), random(&[8, 2], 13)),
        ],
    );
    let [from, out] = ["adapter", "out"].map(|name| folder.arg(name));
    let report = run(&["resize", &from, &out, "--rank", "3"]);
    assert!(report["error"].as_f64().unwrap() < 1e-6, "{report}");
    assert_eq!(
        [
            &report["layers"][1]["before"],
            &report["layers"][1]["after"]
        ],
        [2, 2]
    );
    // rsLoRA's scaling is alpha / √r.
    for (path, rank) in [("h.0.fc", 3.0f64), ("h.0.out", 2.0)] {
        let scaling = 4.0 / rank.sqrt();
        let (found, expected) = (
            update(&folder.path("out"), path, scaling),
            update(&folder.path("adapter"), path, scaling),
        );
        assert!(error(&found, &expected) < 1e-6, "{path}");
    }
    let diff = run(&["diff", &from, &out]);
    assert!(diff["relative"].as_f64().unwrap() < 1e-6, "{diff}");
}

/// An update with the singular values 4, 2, 1, times a scaling of 3.
#[test]
fn another_rank_loses_the_last_values() {
    let folder = Folder::new();
    let b = rows(&[[0.0, 4.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0; 3]]);
    let a = rows(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
    folder.adapter(
        "adapter",
        r#""r": 3, "lora_alpha": 9, "target_modules": ["fc"], "modules_to_save": ["head"]"#,
        &[("fc", a, b)],
    );
    let weights = folder.path("adapter/adapter_model.safetensors");
    let mut tensors = read(&weights);
    tensors.insert("base_model.model.head.weight".into(), rows(&[[7.0]]));
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    let [from, out] = ["adapter", "out"].map(|name| folder.arg(name));
    let report = run(&["resize", &from, &out, "--energy", "0.9"]);
    assert_eq!(
        [
            &report["layers"][0]["before"],
            &report["layers"][0]["after"]
        ],
        [3, 2]
    );
    let near = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-6;
    assert!(near(&report["error"], (1.0f64 / 21.0).sqrt()), "{report}");
    let written = config(&folder.path("out"));
    assert_eq!([&written["r"], &written["lora_alpha"]], [2, 6]);
    assert_eq!(written["modules_to_save"], serde_json::json!(["head"]));
    let head = &read(&folder.path("out/adapter_model.safetensors"))["base_model.model.head.weight"];
    assert_eq!(head.to_vec2::<f32>().unwrap(), [[7.0]]);
    let found = run(&["inspect", &out]);
    assert!(near(&found["norm"], 3.0 * 20f64.sqrt()), "{found}");
}

#[test]
fn a_rank_must_be_said() {
    let folder = Folder::new();
    folder.adapter(
        "adapter",
        r#""r": 1, "target_modules": ["a"]"#,
        &[("a", rows(&[[1.0]]), rows(&[[1.0]]))],
    );
    let [from, out] = ["adapter", "out"].map(|name| folder.arg(name));
    let output = lora(["resize", &from, &out]).assert().code(1);
    let printed = text(&output.get_output().stderr);
    assert_eq!(
        printed,
        "error: say which rank: --rank N, or --energy SHARE for a rank by layer\n"
    );
    lora(["resize", &from, &out, "--rank", "1", "--energy", "0.5"])
        .assert()
        .code(2);
}

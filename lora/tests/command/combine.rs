use crate::files::{Folder, error, json, random, rows, update};
use crate::{lora, text};
use candle_core::{DType, Device, Tensor};
use candle_nn::Linear;
use lora::{Combination, CombineOptions, LoraModel, LoraModule};

#[derive(Clone, Debug, LoraModel)]
struct Net {
    fc: Linear,
    out: Linear,
}

/// Two adapters, of which the second has one layer more.
fn adapters(folder: &Folder) {
    folder.adapter(
        "one",
        r#""r": 2, "lora_alpha": 3, "target_modules": ["fc"]"#,
        &[("fc", random(&[2, 5], 1), random(&[6, 2], 2))],
    );
    folder.adapter(
        "two",
        r#""r": 2, "lora_alpha": 1, "target_modules": ["fc", "out"]"#,
        &[
            ("fc", random(&[2, 5], 3), random(&[6, 2], 4)),
            ("out", random(&[2, 6], 5), random(&[5, 2], 6)),
        ],
    );
}

/// Every rule gives what it gives in a model that holds both adapters.
#[test]
fn every_rule_is_that_of_the_model() {
    let folder = Folder::new();
    adapters(&folder);
    let weight = |shape| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let net = Net {
        fc: candle_nn::Linear::new(weight((6, 5)), None),
        out: candle_nn::Linear::new(weight((5, 6)), None),
    };
    let both = net.with_adapter(folder.path("one").as_path()).unwrap();
    use Combination::*;
    for (rule, name) in [
        (Linear, "linear"),
        (Cat, "cat"),
        (Svd, "svd"),
        (Ties, "ties"),
        (TiesSvd, "ties_svd"),
        (DareLinear, "dare_linear"),
        (DareTies, "dare-ties"),
        (DareLinearSvd, "dare-linear-svd"),
        (DareTiesSvd, "dare_ties_svd"),
        (MagnitudePrune, "magnitude_prune"),
        (MagnitudePruneSvd, "magnitude-prune-svd"),
    ] {
        let mut model = both.clone();
        model
            .load_adapter_as("two", folder.path("two").as_path())
            .unwrap();
        let options = CombineOptions::default().density(0.6).seed(7);
        let weights = [("default", 0.7), ("two", -0.4)];
        model
            .add_weighted_adapter("both", &weights, rule, &options)
            .unwrap();
        let options = lora::peft::SaveOptions::new().adapters(["both"]);
        let saved = folder.path(&format!("model_{name}"));
        model.save_adapter_with(&saved, &options).unwrap();

        let out = folder.arg(name);
        let args = ["combine", &folder.arg("one"), &folder.arg("two"), &out];
        let more = [
            "--weights=0.7,-0.4",
            "--density=0.6",
            "--seed=7",
            "--json",
            "--rule",
            name,
        ];
        let output = lora(args.into_iter().chain(more)).assert().success();
        let report = json(&output.get_output().stdout);
        assert_eq!(report["layers"][0]["adapters"], 2);
        for path in ["fc", "out"] {
            let found = update(&folder.path(name), path, 1.0);
            let expected = update(&saved.join("both"), path, 1.0);
            assert!(error(&found, &expected) < 1e-6, "{name} {path}");
        }
        // cat is exact.
        let sum = update(&folder.path("one"), "fc", 0.7 * 1.5)
            - update(&folder.path("two"), "fc", 0.4 * 0.5);
        let off = error(&update(&folder.path(name), "fc", 1.0), &sum.unwrap());
        match rule {
            Cat => assert!(off < 1e-6 && report["error"].as_f64().unwrap() < 1e-6),
            Linear | Svd => {
                let told = report["layers"][0]["error"].as_f64().unwrap();
                assert!((told - off).abs() < 1e-6 && told > 1e-3, "{told} {off}");
            }
            _ => assert!(report["error"].is_null()),
        }
    }
}

#[test]
fn what_cannot_be_combined_is_named() {
    let folder = Folder::new();
    adapters(&folder);
    let fails = |args: &[&str], words: &[&str]| {
        let output = lora(args.iter().copied()).assert().code(1);
        let printed = text(&output.get_output().stderr);
        for word in words {
            assert!(printed.contains(word), "no `{word}` in {printed}");
        }
        assert!(!folder.path("out").exists());
    };
    let [one, two, out] = ["one", "two", "out"].map(|name| folder.arg(name));
    fails(
        &["combine", &one, &two, &out, "--weights", "1"],
        &["--weights has 1 number for 2 adapters"],
    );
    fails(
        &["combine", &one, &two, &out, "--rule", "ties"],
        &["fc: Ties needs --density"],
    );
    fails(
        &["combine", &one, &two, &out, "--rank", "9"],
        &["fc: --rank is 9: for this layer it must be at least 1 and at most 5\n"],
    );
    folder.adapter(
        "dora",
        r#""r": 1, "use_dora": true, "target_modules": ["fc"]"#,
        &[("fc", rows(&[[1.0; 5]]), rows(&[[1.0]; 6]))],
    );
    let dora = folder.arg("dora");
    fails(
        &["combine", &one, &dora, &out],
        &[&dora, "`use_dora` is true"],
    );
    lora(["combine", &one, &two, &out, "--rule", "mean"])
        .assert()
        .code(2);
}

/// An adapter with DoRA for `fc` (6, 5).
fn dora(folder: &Folder, name: &str, seed: u64) {
    let magnitude = (random(&[6], seed + 2).abs().unwrap() + 0.5).unwrap();
    let key = |part: &str| format!("base_model.model.fc.{part}");
    let tensors = [
        (key("lora_A.weight"), random(&[2, 5], seed)),
        (key("lora_B.weight"), random(&[6, 2], seed + 1)),
        (key("lora_magnitude_vector"), magnitude),
    ];
    let tensors: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(k, t)| (k.as_str(), t.clone()))
        .collect();
    folder.tensors(&format!("{name}/adapter_model.safetensors"), &tensors);
    std::fs::write(
        folder.path(name).join("adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["fc"], "use_dora": true}"#,
    )
    .unwrap();
}

/// What such adapters change is no sum of low rank. The way that the error names gives that sum.
#[test]
fn adapters_with_dora_are_combined_by_way_of_the_base() {
    let folder = Folder::new();
    dora(&folder, "one", 1);
    dora(&folder, "two", 11);
    let base = random(&[6, 5], 21);
    folder.tensors("base.safetensors", &[("fc.weight", base.clone())]);
    let [base_path, one, two, both] =
        ["base.safetensors", "one", "two", "both"].map(|name| folder.arg(name));
    let refused = lora(["combine", &one, &two, &both]).assert().code(1);
    let printed = text(&refused.get_output().stderr);
    let expected = format!(
        "error: {one}: `use_dora` is true: what the adapter changes depends on the base's weights, and is no \
         sum of low rank. Make a plain adapter of it first: merge it into the base (lora merge), and extract \
         one from the base and the result (lora extract)\n"
    );
    assert_eq!(printed, expected);
    assert!(!folder.path("both").exists());

    let mut plain = Vec::new();
    let mut sum = base.to_dtype(DType::F64).unwrap();
    for adapter in [&one, &two] {
        let [merged, out] = ["merged.safetensors", "plain"].map(|end| format!("{adapter}-{end}"));
        lora(["merge", &base_path, &merged, "--adapter", adapter])
            .assert()
            .success();
        lora(["extract", &base_path, &merged, &out, "--rank", "5"])
            .assert()
            .success();
        let merged = crate::files::read(std::path::Path::new(&merged))["fc.weight"].clone();
        sum = (sum + (merged - &base).unwrap().to_dtype(DType::F64).unwrap()).unwrap();
        plain.push(out);
    }
    lora(["combine", &plain[0], &plain[1], &both])
        .assert()
        .success();
    let out = folder.arg("out.safetensors");
    lora(["merge", &base_path, &out, "--adapter", &both])
        .assert()
        .success();
    let found = crate::files::read(&folder.path("out.safetensors"));
    assert!(error(&found["fc.weight"], &sum) < 1e-5);

    // One alone, as it is, stays what it was.
    let copy = folder.arg("copy");
    lora(["combine", &one, &copy]).assert().success();
    let [before, after] =
        ["before", "after"].map(|name| folder.arg(&format!("{name}.safetensors")));
    lora(["merge", &base_path, &before, "--adapter", &one])
        .assert()
        .success();
    lora(["merge", &base_path, &after, "--adapter", &copy])
        .assert()
        .success();
    let [before, after] = [before, after]
        .map(|path| crate::files::read(std::path::Path::new(&path))["fc.weight"].clone());
    assert!(error(&after, &before) < 1e-6);
    let half = folder.arg("half");
    lora(["combine", &one, &half, "--weights=0.5"])
        .assert()
        .code(1);
}

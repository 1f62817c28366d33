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
        &["fc: Ties needs a density"],
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

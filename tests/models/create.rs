//! Models of the library by name: weights from a seed or a file.

use super::timm::{Fixture, create};
use candle_core::{DType, Device, Module, Tensor};
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::models::{self, Options, Weights, parameter_shapes};
use lora::{Error, LoraModel, LoraModule};
use lora_tests::assert_close;
use std::collections::HashMap;

#[test]
fn random_weights_come_from_the_seed() {
    let values = |seed, options: &Options| {
        let model = create("test_convnext2", Weights::Random(seed), options).unwrap();
        assert_eq!(
            model.fresh.len(),
            parameter_shapes::<ConvNext>(&model.config).unwrap().len()
        );
        let params = model.model.to_frozen().unwrap().named_params();
        let params = params.into_iter().map(|param| {
            let values = lora_tests::values(&param.tensor).unwrap();
            (param.path, values)
        });
        params.collect::<HashMap<_, _>>()
    };
    let first = values(0, &Options::new());
    assert!(first == values(0, &Options::new()));
    let other = values(1, &Options::new());
    assert!(first["stem.0.weight"] != other["stem.0.weight"]);
    // A parameter does not depend on the others.
    let smaller = values(0, &Options::new().num_classes(3));
    assert!(first["stem.0.weight"] == smaller["stem.0.weight"]);
    assert_eq!(smaller["head.fc.bias"], [0.0; 3]);

    let weight = &first["stages.3.blocks.0.mlp.fc1.weight"];
    let variance = weight.iter().map(|w| w * w).sum::<f64>() / weight.len() as f64;
    assert!((variance.sqrt() - 0.02).abs() < 2e-4, "{variance}");
    assert!(first["head.norm.weight"].iter().all(|&w| w == 1.0));
    assert!(first["head.norm.bias"].iter().all(|&b| b == 0.0));
    let gamma = &first["stages.0.blocks.0.gamma"];
    assert!(gamma.iter().all(|&g| (g - 1e-6).abs() < 1e-12));
}

#[test]
fn a_file_is_loaded_and_the_classifier_can_change() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = Fixture::read("v2");
    let file = || Weights::File(fixture.save(directory.path()));
    let build = |options: Options| models::build::<ConvNext>(&fixture.config, file(), &options);

    let same = build(Options::new()).unwrap();
    assert!(same.fresh.is_empty());
    let output = same.model.forward(&fixture.input).unwrap();
    assert_close("as saved", &output, &fixture.output, 1e-5);

    // The number of classes is the file's, unless it is asked for.
    let default = ConvNextConfig {
        num_classes: 1000,
        ..fixture.config.clone()
    };
    let created = models::build::<ConvNext>(&default, file(), &Options::new()).unwrap();
    assert_eq!(created.config.num_classes, 7);

    let other = build(Options::new().num_classes(3)).unwrap();
    assert_eq!(other.fresh, ["head.fc.weight", "head.fc.bias"]);
    let features = other.model.forward_features(&fixture.input).unwrap();
    assert_close("features", &features, &fixture.features, 1e-5);
    let output = other.model.forward(&fixture.input).unwrap();
    assert_eq!(output.dims(), [2, 3]);

    let none = build(Options::new().num_classes(0)).unwrap();
    assert!(none.fresh.is_empty());
    assert_eq!(none.model.forward(&fixture.input).unwrap().dims(), [2, 20]);

    let again = build(Options::new().fresh(["head"])).unwrap();
    let head = ["norm.weight", "norm.bias", "fc.weight", "fc.bias"];
    assert_eq!(again.fresh, head.map(|name| format!("head.{name}")));

    let wide = build(Options::new().dtype(DType::F64)).unwrap();
    let input = fixture.input.to_dtype(DType::F64).unwrap();
    // candle's layer normalisation knows no f64; this crate's does.
    let output = wide.model.to_frozen().unwrap().forward(&input).unwrap();
    assert_eq!(output.dtype(), DType::F64);
    assert_close("f64", &output, &fixture.output, 1e-6);
}

#[test]
fn everything_wrong_with_a_file_is_listed() {
    let directory = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::read("v1");
    let weights = &mut fixture.weights;
    weights.remove("stem.1.bias");
    weights.remove("stages.2.blocks.1.gamma");
    let integers = Tensor::zeros(8, DType::U32, &Device::Cpu).unwrap();
    weights.insert("stem.0.bias".into(), integers);
    let wrong = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
    weights.insert("head.norm.weight".into(), wrong.clone());
    weights.insert("stages.0.extra".into(), wrong);
    let path = fixture.save(directory.path());
    let error = models::build::<ConvNext>(
        &fixture.config,
        Weights::File(path.clone()),
        &Options::new(),
    );
    let Err(Error::Weights(problems)) = error else {
        panic!("{error:?}");
    };
    let mut problems: Vec<&str> = problems.iter().map(String::as_str).collect();
    let file = problems.pop().unwrap();
    assert_eq!(file, format!("the file is {}", path.display()));
    problems.sort();
    assert_eq!(
        problems,
        [
            "`head.norm.weight` is [3, 2], the model's is [20]",
            "`stages.0.extra` is not a parameter of the model",
            "`stages.2.blocks.1.gamma` [16] is missing",
            "`stem.0.bias` is U32, the model's is floating-point",
            "`stem.1.bias` [8] is missing",
        ]
    );
}

#[test]
fn damaged_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = Fixture::read("v1");
    let path = fixture.save(directory.path());
    let whole = std::fs::read(&path).unwrap();
    let load = || {
        let weights = Weights::File(path.clone());
        let created = models::build::<ConvNext>(&fixture.config, weights, &Options::new());
        created.map(|_| ()).unwrap_err().to_string()
    };
    let cut = whole.len() - 1;
    std::fs::write(&path, &whole[..cut]).unwrap();
    let error = load();
    assert!(
        error.contains(&format!("has {cut};")) && error.contains("model.safetensors"),
        "{error}"
    );
    let mut longer = whole.clone();
    longer.push(0);
    for bytes in [&whole[..4], &[255; 64], b"", b"<html>no</html>", &longer] {
        std::fs::write(&path, bytes).unwrap();
        let error = load();
        assert!(error.contains("model.safetensors"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(load().contains("model.safetensors"));
}

#[test]
fn unknown_names_are_told_with_near_ones() {
    let error = create("convnext_tny", Weights::Random(0), &Options::new()).unwrap_err();
    let Error::UnknownModel { name, near } = error else {
        panic!("{error}");
    };
    assert_eq!(name, "convnext_tny");
    assert_eq!(near[0], "convnext_tiny");

    let options = Options::new();
    let tagged = create("convnext_tiny.fb_in1k", Weights::Placeholder, &options);
    assert_eq!(tagged.unwrap().config, ConvNextConfig::default());
    let error = create("convnext_atto.fb_in1k", Weights::Placeholder, &options);
    let error = error.unwrap_err().to_string();
    assert_eq!(
        error,
        "no model is called `convnext_atto.fb_in1k`; did you mean convnext_atto.d2_in1k?"
    );
}

#[test]
fn invalid_configurations_are_refused() {
    let base = ConvNextConfig::default();
    let cases = [
        (
            ConvNextConfig {
                kernel_sizes: [7, 7, 6, 7],
                ..base.clone()
            },
            "kernel_sizes must be odd",
        ),
        (
            ConvNextConfig {
                dims: [0, 1, 2, 3],
                ..base.clone()
            },
            "must not be 0",
        ),
        (
            ConvNextConfig {
                head_norm_first: true,
                head_hidden_size: Some(3),
                ..base
            },
            "head_norm_first",
        ),
    ];
    for (config, message) in cases {
        let error = parameter_shapes::<ConvNext>(&config).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

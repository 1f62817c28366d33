//! Loading: section by section what PEFT passes over.

use super::net::{changed, config, input, net, refused, tuned};
use candle_core::Module;
use lora::{LoraModel, LoraModule, TrainBias};
use lora_tests::{assert_close, values};

const KEY: &str = "base_model.model.model.layers.0.fc1.lora_A.weight";

#[test]
fn a_key_of_a_base_weight_does_not_overwrite_it() {
    let dir = tempfile::tempdir().unwrap();
    changed(
        dir.path(),
        &tuned(&config()),
        |_| {},
        |tensors| {
            let weight = tensors[KEY].zeros_like().unwrap();
            tensors.insert("base_model.model.head.weight".into(), weight);
        },
    );
    refused(
        net().with_adapter(dir.path()),
        &["`head.weight`", "unexpected"],
    );
}

#[test]
fn missing_keys_are_named() {
    let dir = tempfile::tempdir().unwrap();
    changed(
        dir.path(),
        &tuned(&config()),
        |_| {},
        |tensors| {
            tensors.remove(&KEY.replace("lora_A", "lora_B")).unwrap();
        },
    );
    refused(
        net().with_adapter(dir.path()),
        &["model.layers.0.fc1.lora_B.weight", "missing"],
    );
}

#[test]
fn unexpected_keys_are_named() {
    let dir = tempfile::tempdir().unwrap();
    changed(
        dir.path(),
        &tuned(&config()),
        |_| {},
        |tensors| {
            tensors.insert(
                "base_model.model.fc9.lora_A.weight".into(),
                tensors[KEY].clone(),
            );
        },
    );
    refused(
        net().with_adapter(dir.path()),
        &["fc9.lora_A.weight", "unexpected"],
    );
}

#[test]
fn keys_that_hold_the_adapters_name_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = tuned(&config());
    changed(
        dir.path(),
        &model,
        |_| {},
        |tensors| {
            let a = tensors.remove(KEY).unwrap();
            tensors.insert(KEY.replace("lora_A", "lora_A.default"), a);
        },
    );
    model.eval();
    let loaded = net().with_adapter(dir.path()).unwrap();
    let (expected, actual) = (model.forward(&input()), loaded.forward(&input()));
    assert_close("output", &actual.unwrap(), &expected.unwrap(), 1e-6);
}

#[test]
fn keys_without_the_prefix_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = tuned(&config());
    changed(
        dir.path(),
        &model,
        |_| {},
        |tensors| {
            let all: Vec<_> = tensors.drain().collect();
            for (key, tensor) in all {
                let key = key.strip_prefix("base_model.model.").unwrap();
                tensors.insert(key.into(), tensor);
            }
        },
    );
    model.eval();
    let loaded = net().with_adapter(dir.path()).unwrap();
    let (expected, actual) = (model.forward(&input()), loaded.forward(&input()));
    assert_close("output", &actual.unwrap(), &expected.unwrap(), 1e-6);
}

#[test]
fn a_file_with_magnitudes_and_a_configuration_without_disagree() {
    let dir = tempfile::tempdir().unwrap();
    let model = tuned(&config().use_dora(true));
    changed(
        dir.path(),
        &model,
        |json| json["use_dora"] = false.into(),
        |_| {},
    );
    refused(
        net().with_adapter(dir.path()),
        &["lora_magnitude_vector", "unexpected"],
    );
    changed(
        dir.path(),
        &tuned(&config()),
        |json| json["use_dora"] = true.into(),
        |_| {},
    );
    refused(
        net().with_adapter(dir.path()),
        &["lora_magnitude_vector", "missing"],
    );
}

#[test]
fn a_missing_module_to_save_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = tuned(&config().modules_to_save(["norm"]));
    changed(
        dir.path(),
        &model,
        |_| {},
        |tensors| {
            tensors.remove("base_model.model.norm.weight").unwrap();
        },
    );
    refused(
        net().with_adapter(dir.path()),
        &["`norm.weight` is missing"],
    );
}

#[test]
fn shapes_that_differ_are_named() {
    let dir = tempfile::tempdir().unwrap();
    changed(
        dir.path(),
        &tuned(&config()),
        |_| {},
        |tensors| {
            let b = KEY.replace("lora_A", "lora_B");
            let wrong = tensors[&b].narrow(0, 0, 5).unwrap().contiguous().unwrap();
            tensors.insert(b, wrong);
        },
    );
    refused(
        net().with_adapter(dir.path()),
        &["fc1.lora_B.weight", "[5, 2]", "[6, 2]"],
    );
}

/// PEFT makes fresh weights where `get_peft_model` is called in place of `from_pretrained`.
#[test]
fn a_directory_gives_its_own_values() {
    let dir = tempfile::tempdir().unwrap();
    let model = tuned(&config());
    model.save_adapter(dir.path()).unwrap();
    let loaded = net().with_adapter(dir.path()).unwrap();
    for (mine, theirs) in model.named_params().iter().zip(loaded.named_params()) {
        assert_eq!(mine.path, theirs.path);
        let values = [&mine.tensor, &theirs.tensor].map(|t| values(t).unwrap());
        assert_eq!(values[0], values[1], "{}", mine.path);
    }
}

/// PEFT sorts the keys of patterns, and another one then comes first.
#[test]
fn the_order_of_patterns_survives_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = config()
        .target_modules(["fc1", "fc2"])
        .rank_pattern(r"layers\.0\.fc\d", 3)
        .rank_pattern("0.fc2", 5)
        .rank_pattern("fc2", 4);
    refused(
        net().to_lora(&config),
        &["rank_pattern `0.fc2` matches nothing"],
    );
    let mut config = config;
    config.rank_pattern.shift_remove("0.fc2");
    let model = tuned(&config);
    model.save_adapter(dir.path()).unwrap();
    let loaded = net().with_adapter(dir.path()).unwrap();
    let ranks = |model: &super::net::LoraNet| -> Vec<usize> {
        let params = model.named_params().into_iter();
        let a = params.filter(|param| param.name().starts_with("lora_A"));
        a.map(|a| a.tensor.dims()[0]).collect()
    };
    assert_eq!(ranks(&model), [3, 3, 2, 4]);
    assert_eq!(ranks(&loaded), ranks(&model));
}

/// The name of the base model is not enforced, but an adapter of another one does not fit.
#[test]
fn another_base_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    tuned(&config()).save_adapter(dir.path()).unwrap();
    let other = super::net::linear(1, candle_core::DType::F32);
    refused(
        other.with_adapter(dir.path()),
        &["target_modules `fc1` matches nothing"],
    );
}

#[test]
fn pickles_are_never_read() {
    let dir = tempfile::tempdir().unwrap();
    tuned(&config()).save_adapter(dir.path()).unwrap();
    let from = dir.path().join("adapter_model.safetensors");
    std::fs::rename(from, dir.path().join("adapter_model.bin")).unwrap();
    refused(
        net().with_adapter(dir.path()),
        &["adapter_model.bin", "pickle"],
    );
}

#[test]
fn values_that_are_not_finite_are_named() {
    let dir = tempfile::tempdir().unwrap();
    changed(
        dir.path(),
        &tuned(&config()),
        |_| {},
        |tensors| {
            let a = (tensors[KEY].ones_like().unwrap() / 0.0).unwrap();
            tensors.insert(KEY.into(), a);
        },
    );
    refused(
        net().with_adapter(dir.path()),
        &["fc1.lora_A.weight", "not finite"],
    );
}

/// A failed load leaves the model as it was.
#[test]
fn nothing_is_loaded_by_halves() {
    let dir = tempfile::tempdir().unwrap();
    let model = tuned(&config().train_bias(TrainBias::LoraOnly));
    changed(
        dir.path(),
        &model,
        |_| {},
        |tensors| {
            tensors
                .remove("base_model.model.model.layers.1.fc1.base_layer.bias")
                .unwrap();
        },
    );
    let mut other = net()
        .to_lora(&config().train_bias(TrainBias::LoraOnly))
        .unwrap();
    let all = |model: &super::net::LoraNet| -> Vec<Vec<f64>> {
        let params = model.named_params().into_iter();
        params.map(|param| values(&param.tensor).unwrap()).collect()
    };
    let before = all(&other);
    refused(
        other.load_adapter(dir.path()),
        &["layers.1.fc1.base_layer.bias"],
    );
    assert_eq!(all(&other), before);
}

/// PiSSA's values belong to a base that lost them.
#[test]
fn a_file_for_another_base_weight_is_not_put_into_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = tuned(&config());
    model.save_adapter(dir.path()).unwrap();
    let mut started = tuned(&config().init(lora::Init::Pissa));
    refused(
        started.load_adapter(dir.path()),
        &["the file is for the original base"],
    );
    let raw = |json: &mut serde_json::Value| json["init_lora_weights"] = "pissa".into();
    changed(dir.path(), &tuned(&config()), raw, |_| {});
    refused(
        model.load_adapter(dir.path()),
        &["the file is for the residual base of `pissa`"],
    );
    // One that another start changed is no better.
    let raw = |json: &mut serde_json::Value| json["init_lora_weights"] = "olora".into();
    let other = tempfile::tempdir().unwrap();
    changed(other.path(), &tuned(&config()), raw, |_| {});
    refused(started.load_adapter(other.path()), &["`olora`", "`pissa`"]);
    started.load_adapter(dir.path()).unwrap();
}

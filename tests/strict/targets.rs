//! Patterns: what PEFT's matching passes over.

use super::net::{config, linear, net, refused};
use candle_core::DType;
use lora::{Init, LoraConfig, LoraModel, LoraModule};

fn adapted(config: &LoraConfig) -> Vec<String> {
    let model = net().to_lora(config).unwrap();
    let layers = model.layer_status().into_iter();
    layers.map(|layer| layer.name).collect()
}

#[test]
fn a_target_without_effect_is_named() {
    let config = config().target_modules(["fc1", "q_proj"]);
    refused(
        net().to_lora(&config),
        &["target_modules `q_proj` matches nothing", "fc1 (Linear)"],
    );
}

#[test]
fn every_target_without_effect_is_named() {
    let config = config().target_modules(["fc7", "fc8"]);
    refused(net().to_lora(&config), &["`fc7`", "`fc8`"]);
}

#[test]
fn an_exclusion_without_effect_is_named() {
    let config = config().exclude_modules(["lm_head"]);
    refused(
        net().to_lora(&config),
        &["exclude_modules `lm_head` matches nothing"],
    );
}

#[test]
fn a_module_to_save_without_effect_is_named() {
    let config = config().modules_to_save(["classifier"]);
    refused(
        net().to_lora(&config),
        &["modules_to_save `classifier` matches nothing"],
    );
}

#[test]
fn a_module_to_save_matches_at_dots_only() {
    let model = net().to_lora(&config().modules_to_save(["head"])).unwrap();
    let params = model.named_params().into_iter();
    let saved = params.filter(|param| param.is_trainable() && param.name() == "weight");
    let saved: Vec<String> = saved.map(|param| param.path).collect();
    assert_eq!(saved, ["head.weight"]);
    // PEFT would take `my_head` as well when it loads this.
    let dir = tempfile::tempdir().unwrap();
    refused(model.save_adapter(dir.path()), &["my_head"]);
}

#[test]
fn an_entry_of_a_list_is_no_regular_expression() {
    refused(
        net().to_lora(&config().target_modules([r"fc\d"])),
        &[r"`fc\d` matches nothing"],
    );
}

#[test]
fn a_rank_pattern_without_effect_is_named() {
    refused(
        net().to_lora(&config().rank_pattern("fc3", 4)),
        &["rank_pattern `fc3`"],
    );
    refused(
        net().to_lora(&config().alpha_pattern("fc3", 4.)),
        &["alpha_pattern `fc3`"],
    );
}

#[test]
fn a_rank_pattern_in_the_shadow_of_another_is_named() {
    let config = config().rank_pattern(r"fc\d", 4).rank_pattern("fc1", 2);
    refused(net().to_lora(&config), &["rank_pattern `fc1`"]);
}

#[test]
fn a_layer_number_without_effect_is_named() {
    let config = config().layers_to_transform([0, 7]);
    refused(net().to_lora(&config), &["layers_to_transform", "number 7"]);
}

#[test]
fn a_layer_pattern_without_effect_is_named() {
    let config = config()
        .layers_to_transform([0])
        .layers_pattern(["layers", "h"]);
    refused(
        net().to_lora(&config),
        &["layers_pattern `h` matches nothing"],
    );
    let config = super::net::config().layers_pattern(["layers"]);
    refused(
        net().to_lora(&config),
        &["layers_pattern", "layers_to_transform"],
    );
}

#[test]
fn a_whole_path_needs_no_number() {
    let config = config()
        .target_modules(["fc1", "model.layers.1.fc2"])
        .layers_to_transform([0]);
    assert_eq!(
        adapted(&config),
        ["model.layers.0.fc1", "model.layers.1.fc2"]
    );
}

#[test]
fn a_container_is_no_target() {
    refused(
        net().to_lora(&config().target_modules(["layers"])),
        &["`model.layers`"],
    );
}

#[test]
fn a_layer_without_adapters_is_no_target() {
    refused(
        net().to_lora(&config().target_modules(["norm"])),
        &["`norm` is a LayerNorm"],
    );
}

#[test]
fn nothing_to_adapt_is_an_error() {
    let none = LoraConfig::new(2);
    refused(net().to_lora(&none), &["nothing is adapted"]);
}

/// PiSSA and OLoRA with too high a rank make smaller matrices in PEFT.
#[test]
fn a_rank_beyond_the_weights_is_named() {
    for init in [Init::Pissa, Init::Olora, Init::Mica] {
        let config = LoraConfig::new(8).init(init);
        refused(linear(1, DType::F32).to_lora(&config), &["rank", "8", "6"]);
    }
}

/// PEFT falls back to the default for an embedding.
#[test]
fn an_initial_value_for_linear_layers_is_refused_elsewhere() {
    let embedding = candle_nn::Embedding::new(lora_tests::fixed((6, 6), DType::F32, 1), 6);
    for init in [Init::Pissa, Init::Olora, Init::Orthogonal, Init::Mica] {
        let config = LoraConfig::new(2).init(init);
        refused(
            embedding.to_lora(&config),
            &["Embedding", &init.to_string()],
        );
    }
}

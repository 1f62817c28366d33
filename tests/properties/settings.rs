//! Settings to `adapter_config.json` and back.

use lora::peft::AdapterConfig;
use lora::{Init, LoraConfig, TrainBias};
use lora_tests::cases;
use proptest::collection::vec;
use proptest::prelude::*;
use std::fs;

fn names() -> impl Strategy<Value = Vec<String>> {
    vec("[a-zé\u{1F600}\"\\\\]{1,6}", 1..4)
}

fn settings() -> impl Strategy<Value = LoraConfig> {
    let numbers = (1..1000usize, -1e3..1e3f64, 0.0..1.0f64);
    let lists = (names(), names(), names(), vec(0..90usize, 0..4));
    let patterns = (
        vec(("[a-z.*^$]{1,5}", 1..64usize), 0..5),
        vec(("[a-z.*^$]{1,5}", 1e-9..1e9f64), 0..5),
        vec(any::<u32>(), 0..4),
    );
    let flags = any::<[bool; 4]>();
    (numbers, lists, patterns, flags).prop_map(|(numbers, lists, patterns, flags)| {
        let (rank, alpha, dropout) = numbers;
        let (targets, excluded, saved, layers) = lists;
        let mut config = LoraConfig::new(rank)
            .alpha(alpha)
            .dropout(dropout)
            .target_modules(targets)
            .exclude_modules(excluded)
            .modules_to_save(saved)
            .use_rslora(flags[0])
            .use_dora(flags[1])
            .lora_bias(flags[2] && !flags[1])
            .ensure_weight_tying(flags[3])
            .train_bias(if flags[0] {
                TrainBias::All
            } else {
                TrainBias::LoraOnly
            })
            .init(if flags[1] {
                Init::Gaussian
            } else {
                Init::Random
            })
            .trainable_token_indices("embed", patterns.2)
            .layers_to_transform(layers.clone());
        if !layers.is_empty() {
            config = config.layers_pattern(["h"]);
        }
        for (key, rank) in patterns.0 {
            config = config.rank_pattern(key, rank);
        }
        for (key, alpha) in patterns.1 {
            config = config.alpha_pattern(key, alpha);
        }
        config
    })
}

/// Nothing is lost on the way through a file, to the last bit, and writing what was read gives the
/// same bytes.
fn survives(config: LoraConfig) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let bytes = AdapterConfig::from_lora_config(&config)
        .unwrap()
        .to_json()
        .unwrap();
    prop_assert!(bytes.is_ascii());
    fs::write(dir.path().join("adapter_config.json"), &bytes).unwrap();
    let again = AdapterConfig::read(dir.path()).unwrap();
    prop_assert_eq!(again.to_json().unwrap(), bytes);
    let settings = LoraConfig::from_pretrained(dir.path()).unwrap();
    // The order of patterns counts, which a comparison of maps does not see.
    let keys = |config: &LoraConfig| config.rank_pattern.keys().cloned().collect::<Vec<_>>();
    prop_assert_eq!(keys(&settings), keys(&config));
    prop_assert_eq!(settings, config);
    Ok(())
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn settings_survive_the_file(config in settings()) {
        survives(config)?;
    }
}

/// A letter that JSON writes in two bytes, and a list of rows without any.
#[test]
fn an_exclude_beyond_ascii_survives_the_file() {
    let config = LoraConfig::new(1)
        .alpha(0.0)
        .target_modules(["a"])
        .exclude_modules(["é"])
        .modules_to_save(["a"])
        .train_bias(TrainBias::LoraOnly)
        .use_dora(true)
        .init(Init::Gaussian)
        .trainable_token_indices("embed", []);
    survives(config).unwrap();
}

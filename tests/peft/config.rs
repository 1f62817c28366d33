//! `adapter_config.json` of PEFT's versions to come.

use super::models::{Mlp, Twin};
use super::support::*;
use candle_core::Module;
use lora::peft::{AdapterConfig, AdapterDir, InitWeights};
use lora::{LoraConfig, LoraModel, LoraModule};
use std::fs;
use std::sync::{Arc, Mutex};

#[test]
fn files_of_newer_versions_are_read() -> Result {
    let dir = tempfile::tempdir()?;
    let fixture = Fixture::new("linear");
    let mut files = Files::read(&fixture.adapter());
    files.config["brand_new"] = serde_json::json!({"a": 1});
    files.config["also_new"] = serde_json::json!(null);
    files.config["runtime_config"] = serde_json::json!({"ephemeral_gpu_offload": true});
    files.write(dir.path());
    let config = AdapterConfig::read(dir.path())?;
    assert_eq!(config.unknown["brand_new"]["a"], 1);
    assert_eq!(config.init_lora_weights, InitWeights::Flag(true));
    assert_eq!(
        config.to_lora_config()?,
        LoraConfig::from_pretrained(fixture.adapter())?
    );
    // Whoever loads the adapter hears of the keys that are switched on.
    let notes = Arc::<Mutex<Vec<String>>>::default();
    let sink = notes.clone();
    let heard =
        AdapterDir::new(dir.path()).report(move |note| sink.lock().unwrap().push(note.into()));
    Mlp::new(&fixture.base).with_adapter(heard)?;
    assert_eq!(
        *notes.lock().unwrap(),
        [
            "adapter_config.json has settings that are not known and have no effect here: \
             `brand_new` is {\"a\":1}"
        ]
    );
    // They are not written.
    let original = fs::read(fixture.adapter().join("adapter_config.json"))?;
    assert_eq!(config.to_json()?, original);
    Ok(())
}

/// What trainers write, and PEFT takes: `null` for flags, `layers_pattern: ""`, a dropout of 1.
#[test]
fn loose_settings_load() -> Result {
    let fixture = Fixture::new("linear");
    let mut files = Files::read(&fixture.adapter());
    for (key, value) in [
        ("use_dora", serde_json::json!(null)),
        ("use_rslora", serde_json::json!(null)),
        ("init_lora_weights", serde_json::json!(null)),
        ("layers_pattern", serde_json::json!("")),
        ("lora_dropout", serde_json::json!(1.0)),
    ] {
        files.config[key] = value;
    }
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    let mut model = Mlp::new(&fixture.base).with_adapter(dir.path())?;
    let (input, expected) = (fixture.input(), fixture.io.get("output"));
    assert!(error(&model.forward(&input)?, &expected) <= 1e-5);
    // In training everything is dropped, as in PyTorch.
    model.train();
    let base = fixture.io.get("base_output");
    assert!(error(&model.forward(&input)?, &base) <= 1e-5);
    Ok(())
}

//! `adapter_config.json` of PEFT's versions to come.

use super::support::*;
use lora::LoraConfig;
use lora::peft::{AdapterConfig, InitWeights};
use std::fs;

#[test]
fn files_of_newer_versions_are_read_on_demand() -> Result {
    let dir = tempfile::tempdir()?;
    let fixture = Fixture::new("linear");
    let mut files = Files::read(&fixture.adapter());
    files.config["brand_new"] = serde_json::json!({"a": 1});
    files.config["also_new"] = serde_json::json!(null);
    files.config["runtime_config"] = serde_json::json!({"ephemeral_gpu_offload": true});
    files.write(dir.path());
    let problem = AdapterConfig::read(dir.path()).unwrap_err().to_string();
    assert!(
        problem.contains("`brand_new`") && !problem.contains("also_new"),
        "{problem}"
    );
    let config = AdapterConfig::read_any(dir.path())?;
    assert_eq!(config.unknown["brand_new"]["a"], 1);
    assert_eq!(config.init_lora_weights, InitWeights::Flag(true));
    assert_eq!(
        config.to_lora_config()?,
        LoraConfig::from_pretrained(fixture.adapter())?
    );
    // They are not written.
    let original = fs::read(fixture.adapter().join("adapter_config.json"))?;
    assert_eq!(config.to_json()?, original);
    Ok(())
}

//! Any bytes as `adapter_config.json`: an error, or a configuration that is written and read again
//! without a change.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lora::peft::{AdapterConfig, CONFIG_FILE};
use std::sync::LazyLock;
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a directory"));

fuzz_target!(|bytes: &[u8]| {
    let path = DIR.path().join(CONFIG_FILE);
    std::fs::write(&path, bytes).expect("written");
    let Ok(config) = AdapterConfig::read(DIR.path()) else {
        return;
    };
    let _ = config.to_lora_config();
    let json = config.to_json().expect("what was read can be written");
    std::fs::write(&path, json).expect("written");
    let mut again = AdapterConfig::read(DIR.path()).expect("what was written can be read");
    // Keys that are not known are not written.
    again.unknown = config.unknown.clone();
    assert_eq!(again, config);
});

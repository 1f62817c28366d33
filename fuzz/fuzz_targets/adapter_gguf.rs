//! Any bytes as a GGUF adapter: an error, or a directory that is written as GGUF and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lora::peft::{AdapterConfig, GgufOptions, WEIGHTS_FILE, adapter_to_gguf, gguf_to_adapter};
use std::sync::LazyLock;
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a directory"));

fuzz_target!(|bytes: &[u8]| {
    let path = |name: &str| DIR.path().join(name);
    std::fs::write(path("in.gguf"), bytes).expect("written");
    let heads = GgufOptions::default().heads(4, 2).experts(4);
    if gguf_to_adapter(path("in.gguf"), path("first"), &heads).is_err() {
        return;
    }
    AdapterConfig::read(path("first")).expect("what was written can be read");
    let mut options = GgufOptions::new("llama").heads(4, 2).experts(4);
    if adapter_to_gguf(path("first"), path("out.gguf"), &options).is_err() {
        // A product with B can be too large for the dtype.
        return;
    }
    options.arch = None;
    gguf_to_adapter(path("out.gguf"), path("second"), &options).expect("what was written is read");
    let weights = path("second").join(WEIGHTS_FILE);
    assert!(weights.is_file());
});

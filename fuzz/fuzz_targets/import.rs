//! Any bytes as a file of kohya, diffusers or mlx-lm: an error, or a directory of PEFT's that is
//! written in every format and read again. The first byte chooses the component and whether settings
//! of mlx-lm stand beside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lora::peft::AdapterConfig;
use lora::peft::import::{Format, Options, export, import};
use std::sync::LazyLock;
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a directory"));

const MODULES: [&str; 5] = ["a.b", "a_b", "fc1", "layers.0.fc", "layers.1.fc"];

fuzz_target!(|bytes: &[u8]| {
    let path = |name: &str| DIR.path().join(name);
    let (choice, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    std::fs::write(path("adapters.safetensors"), bytes).expect("written");
    let settings = path("adapter_config.json");
    match choice & 1 {
        0 => drop(std::fs::remove_file(settings)),
        _ => std::fs::write(settings, r#"{"lora_parameters": {"scale": 2.5}}"#).expect("written"),
    }
    let mut options = Options::new().modules(MODULES);
    if let Some(component) = ["unet", "te", "text_encoder"].get(usize::from(choice >> 1)) {
        options = options.component(*component);
    }
    let (first, second) = (path("first"), path("second"));
    if import(path("adapters.safetensors"), &first, &options).is_err() {
        return;
    }
    AdapterConfig::read(&first).expect("what was written can be read");
    let options = Options::new().modules(MODULES).component("unet");
    for (format, to) in [
        (Format::Kohya, path("kohya.safetensors")),
        (Format::Diffusers, path("diffusers.safetensors")),
        (Format::MlxLm, path("mlx")),
    ] {
        if export(&first, &to, format, &options).is_ok() {
            // A layer that the modules do not name has no way back from kohya's keys.
            let again = import(&to, &second, &options);
            assert!(again.is_ok() || format == Format::Kohya);
        }
    }
});

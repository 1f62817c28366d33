//! A merged file, as the package gguf reads it: `fixtures/gguf/make_merged.py`.

use candle_core::quantized::gguf_file;
use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use lora::peft::{GgufMergeReport, merge_gguf};
use lora_tests::assert_close;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf/merged");
    fixtures.join(name)
}

fn merge(out: &Path) -> GgufMergeReport {
    merge_gguf(fixture("base.gguf"), fixture("adapter"), out).unwrap()
}

/// Writes what `make_merged.py check` checks.
#[test]
fn export_merged() {
    if let Ok(dir) = std::env::var("LORA_GGUF_EXPORT") {
        merge(&Path::new(&dir).join("merged.gguf"));
    }
}

/// The script compared gguf's values with the sums of base and update; here they are ours.
#[test]
fn a_merged_file_holds_what_the_package_gguf_reads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("merged.gguf");
    let report = merge(&path);
    // All sums are exact in f32, so that the blocks are the same on every machine.
    let same = fs::read(&path).unwrap() == fs::read(fixture("merged.gguf")).unwrap();
    assert!(same, "the merged file is not the one that gguf read");

    let expected = load(fixture("values.safetensors"), &Device::Cpu).unwrap();
    let errors = fs::read(fixture("errors.json")).unwrap();
    let errors: HashMap<String, f64> = serde_json::from_slice(&errors).unwrap();
    assert_eq!((report.layers.len(), errors.len()), (14, 14));
    let mut file = File::open(&path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    for (name, error) in &report.layers {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
        let values: Tensor = tensor.dequantize(&Device::Cpu).unwrap();
        assert_close(name, &values, &expected[name], 1e-6);
        let of_gguf = errors[name];
        assert!(
            (error - of_gguf).abs() <= 1e-5 * of_gguf.max(1e-3),
            "{name}: {error} {of_gguf}"
        );
    }
}

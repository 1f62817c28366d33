//! Merging an adapter over a GGUF file into a directory of transformers.

use super::super::{folder, io};
use super::support::{Pair, ids, in_parts, pair, wide};
use candle_core::quantized::GgmlDType;
use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};
use lora::models::{self, Options};
use lora::peft::{MergeOptions, MergeReport, merge_checkpoint, merge_checkpoint_with};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::assert_close;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// An adapter of all linear layers, with the logits of the adapted model.
fn adapted(pair: &Pair, ids: &Tensor) -> (PathBuf, Tensor) {
    let config = LoraConfig::new(2).target_modules("all-linear");
    let model = pair.quantised().to_lora(&config).unwrap();
    lora_tests::fill_adapters(&model);
    let dir = pair.root.path().join("adapter");
    model.save_adapter(&dir).unwrap();
    (dir, model.forward(ids, None).unwrap())
}

fn logits(dir: &Path, ids: &Tensor) -> Tensor {
    let auto = models::auto(dir, &Options::new());
    let auto = auto.unwrap_or_else(|error| panic!("{error}"));
    let model = auto.into_decoder().unwrap().model;
    model.forward(ids, None).unwrap()
}

/// Each family, reloaded from the directory alone: names, rows, norms and settings are transformers'.
#[test]
fn each_family_is_reloaded() {
    for case in super::FAMILIES
        .into_iter()
        .chain(["granite_bias", "qwen3_bias"])
    {
        let (pair, io) = (pair(case, GgmlDType::Q8_0), io(case));
        let (adapter, expected) = adapted(&pair, &io["ids"]);
        let out = pair.root.path().join("merged");
        let report = merge_checkpoint(pair.gguf(), adapter, &out).unwrap();
        assert_eq!(report.settings.len(), 0, "{case}");
        assert_close(case, &logits(&out, &io["ids"]), &expected, 1e-5);
        let names = |path: PathBuf| -> Vec<String> {
            let tensors = load(path, &Device::Cpu).unwrap();
            let mut names: Vec<String> = tensors.into_keys().collect();
            names.sort();
            names
        };
        let of_transformers = names(folder(case).join("model.safetensors"));
        assert_eq!(
            names(out.join("model.safetensors")),
            of_transformers,
            "{case}"
        );
    }
}

/// Every value is rounded once, from its sum in f32.
#[test]
fn half_types_are_rounded_once() {
    let pair = wide(GgmlDType::Q4_0);
    let (adapter, expected) = adapted(&pair, &ids());
    let merge = |dtype: DType| {
        let out = pair.root.path().join(format!("{dtype:?}"));
        let options = MergeOptions::new().dtype(dtype);
        merge_checkpoint_with(pair.gguf(), &adapter, &out, &options).unwrap();
        let config = fs::read(out.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let tensors = load(out.join("model.safetensors"), &Device::Cpu).unwrap();
        (config["torch_dtype"].clone(), tensors)
    };
    let (name, full) = merge(DType::F32);
    assert_eq!(name, "float32");
    assert_close(
        "f32",
        &logits(&pair.root.path().join("F32"), &ids()),
        &expected,
        1e-5,
    );
    for (dtype, name) in [(DType::F16, "float16"), (DType::BF16, "bfloat16")] {
        let (of_config, tensors) = merge(dtype);
        assert_eq!((of_config, tensors.len()), (name.into(), full.len()));
        for (name, tensor) in &tensors {
            assert_eq!(tensor.dtype(), dtype);
            let rounded = full[name].to_dtype(dtype).unwrap();
            assert_close(name, tensor, &rounded, 0.0);
        }
    }
}

#[test]
fn parts_become_shards_with_an_index() {
    let pair = wide(GgmlDType::Q8_0);
    let (adapter, expected) = adapted(&pair, &ids());
    let out = pair.root.path().join("merged");
    let options = MergeOptions::new().dtype(DType::BF16);
    let report = merge_checkpoint_with(in_parts(&pair), &adapter, &out, &options).unwrap();
    let files: Vec<&str> = report
        .files
        .iter()
        .map(|file| file.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        files,
        [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "config.json"
        ]
    );
    let index = fs::read(out.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let sizes = (1..=2).map(|part| {
        let path = out.join(format!("model-{part:05}-of-00002.safetensors"));
        let tensors = load(path, &Device::Cpu).unwrap();
        let count = tensors.values().map(|tensor| 2 * tensor.elem_count());
        count.sum::<usize>()
    });
    assert_eq!(index["metadata"]["total_size"], sizes.sum::<usize>());
    assert_close("bf16", &logits(&out, &ids()), &expected, 2e-2);
}

/// A checkpoint of transformers can change its dtype, too.
#[test]
fn a_checkpoint_is_converted() {
    let pair = wide(GgmlDType::F32);
    let (adapter, expected) = adapted(&pair, &ids());
    fs::remove_file(pair.gguf()).unwrap();
    let base = pair.root.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in ["model.safetensors", "config.json"] {
        fs::copy(pair.root.path().join(file), base.join(file)).unwrap();
    }
    let merge = |dtype: Option<DType>, out: &str| -> (MergeReport, BTreeMap<String, Tensor>) {
        let options = MergeOptions::new().copy_files(true);
        let options = dtype.map_or(options.clone(), |dtype| options.dtype(dtype));
        let out = pair.root.path().join(out);
        let report = merge_checkpoint_with(&base, &adapter, &out, &options).unwrap();
        let tensors = load(out.join("model.safetensors"), &Device::Cpu).unwrap();
        (report, tensors.into_iter().collect())
    };
    let (_, plain) = merge(None, "plain");
    let (_, half) = merge(Some(DType::F16), "half");
    for (name, tensor) in &half {
        let rounded = plain[name].to_dtype(DType::F16).unwrap();
        assert_eq!(tensor.dtype(), DType::F16);
        assert_close(name, tensor, &rounded, 0.0);
    }
    assert_close(
        "f32",
        &logits(&pair.root.path().join("plain"), &ids()),
        &expected,
        1e-5,
    );

    let error = |dtype| {
        let options = MergeOptions::new().dtype(dtype);
        let out = pair.root.path().join("none");
        let error = merge_checkpoint_with(&base, &adapter, out, &options).unwrap_err();
        error.to_string()
    };
    assert!(error(DType::U8).contains("a result is in F64, F32, F16 or BF16"));
}

/// A head that parts from its embedding: the written `config.json` says so.
#[test]
fn an_untied_head_is_in_the_configuration() {
    let pair = pair("smollm2", GgmlDType::Q8_0);
    let config = LoraConfig::new(2).target_modules(["embed_tokens"]);
    let model = pair.quantised().to_lora(&config).unwrap();
    lora_tests::fill_adapters(&model);
    let adapter = pair.root.path().join("adapter");
    model.save_adapter(&adapter).unwrap();
    let out = pair.root.path().join("merged");
    let options = MergeOptions::new().untie(true);
    merge_checkpoint_with(pair.gguf(), adapter, &out, &options).unwrap();
    let expected = model.forward(&ids(), None).unwrap();
    assert_close("untied", &logits(&out, &ids()), &expected, 1e-5);
}

//! Merging into GGUF files.

use super::super::{folder, io};
use super::support::{Pair, ids, in_parts, pair, wide};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use lora::models::Options;
use lora::models::decoder::{Decoder, from_gguf};
use lora::peft::{MergeOptions, merge_gguf, merge_gguf_with};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::assert_close;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Each tensor of the merged file is the sum of its dequantised values and the update, rounded once to its
/// type.
fn assert_rounded_once(pair: &Pair, adapter: &Path, merged: &Path) {
    let device = &Device::Cpu;
    let read = |path: &Path| {
        let mut file = File::open(path).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
        let tensor = |name: String| {
            let tensor = content.tensor(&mut file, &name, device).unwrap();
            (name, tensor)
        };
        let tensors: HashMap<String, QTensor> = names.into_iter().map(tensor).collect();
        (content.metadata, tensors)
    };
    let (metadata, base) = read(&pair.gguf());
    let full = base.iter().map(|(name, tensor)| {
        let values = tensor.dequantize(device).unwrap();
        (
            name.as_str(),
            QTensor::quantize(&values, GgmlDType::F32).unwrap(),
        )
    });
    let full: Vec<(&str, QTensor)> = full.collect();
    let tensors: Vec<(&str, &QTensor)> = full.iter().map(|(name, t)| (*name, t)).collect();
    let fields: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (&**k, v)).collect();
    let wide = pair.root.path().join("wide.gguf");
    gguf_file::write(&mut File::create(&wide).unwrap(), &fields, &tensors).unwrap();
    let sums = pair.root.path().join("sums.gguf");
    merge_gguf(&wide, adapter, &sums).unwrap();
    let ((_, sums), (_, merged)) = (read(&sums), read(merged));
    for (name, tensor) in &merged {
        let sum = sums[name].dequantize(device).unwrap();
        let expected = QTensor::quantize(&sum, tensor.dtype()).unwrap();
        assert_eq!(tensor.dtype(), base[name].dtype(), "{name}");
        let (ours, expected) = (tensor.dequantize(device), expected.dequantize(device));
        assert_close(name, &ours.unwrap(), &expected.unwrap(), 1e-6);
    }
}

/// The merged file holds what the adapter makes of the dequantised weights, in the types of the base.
#[test]
fn an_adapter_is_merged_into_a_file() {
    for (case, kind) in [
        ("llama_llama3", GgmlDType::F32),
        ("phi3_partial", GgmlDType::F32),
        ("phi3_partial", GgmlDType::Q8_0),
    ] {
        let (pair, io) = (pair(case, kind), io(case));
        let adapter = folder("peft").join(case).join("adapter");
        let out = pair.root.path().join("merged.gguf");
        let report = merge_gguf(pair.gguf(), &adapter, &out).unwrap();
        assert!(!report.layers.is_empty());
        let most = if kind == GgmlDType::F32 { 0.0 } else { 0.01 };
        for (name, error) in &report.layers {
            assert!(*error <= most, "{case}, {name}: {error}");
        }
        let merged = from_gguf(&out, &Options::new()).unwrap().model;
        let merged = merged.forward(&io["ids"], None).unwrap();
        let adapted = pair.full().with_adapter(&adapter).unwrap();
        let expected = adapted.forward(&io["ids"], None).unwrap();
        match kind {
            GgmlDType::F32 => assert_close(case, &merged, &expected, 1e-5),
            _ => assert_rounded_once(&pair, &adapter, &out),
        }
        assert_eq!(
            fs::metadata(&out).unwrap().len(),
            fs::metadata(pair.gguf()).unwrap().len()
        );
    }
    let pair = wide(GgmlDType::Q4_0);
    let adapter = folder("peft").join("llama_llama3").join("adapter");
    let out = pair.root.path().join("merged.gguf");
    let error = merge_gguf(pair.gguf(), adapter, &out).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("which do not fit the base's `model.layers.0.")
            && error.contains("[256, 256]"),
        "{error}"
    );
    assert!(!out.exists());
}

/// Adapts a model at these paths, and saves what it has learned.
fn adapted(
    model: Decoder,
    config: &LoraConfig,
    root: &Path,
) -> (<Decoder as LoraModel>::Lora, PathBuf) {
    let model = model.to_lora(config).unwrap();
    lora_tests::fill_adapters(&model);
    let dir = root.join("adapter");
    model.save_adapter(&dir).unwrap();
    (model, dir)
}

fn logits(path: &Path) -> Tensor {
    let model = from_gguf(path, &Options::new()).unwrap().model;
    model.forward(&ids(), None).unwrap()
}

/// DoRA and a bias on B come into the file, too.
#[test]
fn all_that_an_adapter_holds_is_merged() {
    let pair = pair("granite_bias", GgmlDType::F32);
    let model = pair.quantised();
    let config = LoraConfig::new(2).use_dora(true);
    let (model, dir) = adapted(model, &config, pair.root.path());
    let out = pair.root.path().join("merged.gguf");
    merge_gguf(pair.gguf(), dir, &out).unwrap();
    let expected = model.forward(&ids(), None).unwrap();
    assert_close("DoRA", &logits(&out), &expected, 1e-5);
}

/// An adapter of an embedding that is the head, too.
#[test]
fn a_tied_embedding_is_parted_or_kept() {
    let pair = wide(GgmlDType::Q8_0);
    let config = LoraConfig::new(2).target_modules(["embed_tokens", "q_proj"]);
    let (model, dir) = adapted(pair.quantised(), &config, pair.root.path());
    let out = pair.root.path().join("merged.gguf");
    let error = merge_gguf(pair.gguf(), &dir, &out).unwrap_err().to_string();
    assert!(
        error.contains("MergeOptions::untie gives the head one of its own"),
        "{error}"
    );
    assert!(!out.exists());

    let untied = merge_gguf_with(pair.gguf(), &dir, &out, &MergeOptions::new().untie(true));
    let names: Vec<String> = untied.unwrap().layers.into_iter().map(|of| of.0).collect();
    assert_eq!(
        names,
        ["token_embd.weight", "blk.0.attn_q.weight", "output.weight"]
    );
    let untied = from_gguf(&out, &Options::new()).unwrap().model;
    assert!(!untied.config().tie_word_embeddings);
    let expected = model.forward(&ids(), None).unwrap();
    let logits = untied.forward(&ids(), None).unwrap();
    assert_close("untied", &logits, &expected, 2e-2);
    // The head is the base's embedding, block by block.
    let read = |path: &Path, name: &str| {
        let mut file = File::open(path).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
        (tensor.dtype(), tensor.data().unwrap().into_owned())
    };
    let head = read(&out, "output.weight");
    assert_eq!(head, read(&pair.gguf(), "token_embd.weight"));
    for name in ["blk.0.ffn_down.weight", "output_norm.weight"] {
        assert_eq!(read(&out, name), read(&pair.gguf(), name), "{name}");
    }

    merge_gguf_with(
        pair.gguf(),
        &dir,
        &out,
        &MergeOptions::new().keep_tied(true),
    )
    .unwrap();
    let kept = from_gguf(&out, &Options::new()).unwrap().model;
    assert!(kept.config().tie_word_embeddings);
    assert_ne!(read(&out, "token_embd.weight"), head);
}

/// In full precision nothing is rounded: the untied head gives the very logits.
#[test]
fn an_untied_head_computes_as_in_training() {
    let pair = pair("smollm2", GgmlDType::F32);
    let config = LoraConfig::new(2).target_modules(["embed_tokens", "down_proj"]);
    let (model, dir) = adapted(pair.quantised(), &config, pair.root.path());
    let out = pair.root.path().join("merged.gguf");
    merge_gguf_with(pair.gguf(), dir, &out, &MergeOptions::new().untie(true)).unwrap();
    let expected = model.forward(&ids(), None).unwrap();
    assert_close("untied", &logits(&out), &expected, 1e-5);
}

#[test]
fn parts_are_merged_into_parts() {
    let pair = wide(GgmlDType::Q8_0);
    let config = LoraConfig::new(2).target_modules("all-linear");
    let (_, dir) = adapted(pair.quantised(), &config, pair.root.path());
    let whole = pair.root.path().join("whole.gguf");
    merge_gguf(pair.gguf(), &dir, &whole).unwrap();
    let base = in_parts(&pair);
    let error = merge_gguf(&base, &dir, pair.root.path().join("out.gguf")).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("the base has 2 parts, so name it `..-00001-of-00002.gguf`"),
        "{error}"
    );
    let error = merge_gguf(&base, &dir, &base).unwrap_err().to_string();
    assert!(error.contains("is the base itself"), "{error}");
    let out = pair.root.path().join("out-00001-of-00002.gguf");
    let report = merge_gguf(&base, &dir, &out).unwrap();
    let second = pair.root.path().join("out-00002-of-00002.gguf");
    assert_eq!(report.files, [out.clone(), second]);
    assert_close("parts", &logits(&out), &logits(&whole), 0.0);
}

#[test]
fn what_cannot_be_merged_is_named() {
    let pair = wide(GgmlDType::Q8_0);
    let (_, dir) = adapted(pair.quantised(), &LoraConfig::new(2), pair.root.path());
    let out = pair.root.path().join("merged.gguf");
    let options = MergeOptions::new().dtype(candle_core::DType::F16);
    let error = merge_gguf_with(pair.gguf(), &dir, &out, &options).unwrap_err();
    let expected = "merge_checkpoint writes a directory in another one";
    assert!(error.to_string().contains(expected), "{error}");
    // Files stay as they were where something fails.
    fs::write(&out, b"mine").unwrap();
    fs::write(dir.join("adapter_model.safetensors"), b"damaged").unwrap();
    merge_gguf(pair.gguf(), &dir, &out).unwrap_err();
    assert_eq!(fs::read(&out).unwrap(), b"mine");
}

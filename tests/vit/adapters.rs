//! PEFT's adapters, both ways, and its training steps.

use super::{folder, io, of};
use candle_core::safetensors::load;
use candle_core::{DType, Device, Module};
use candle_nn::{Optimizer, ParamsAdamW};
use lora::ops::cross_entropy;
use lora::optim::AdamW;
use lora::{LoraModel, LoraModule};
use lora_tests::{assert_close, relative_error, values};
use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn pefts_adapter_gives_pefts_logits_and_is_saved_again() {
    let (base, io, peft) = (of("timm_vit", DType::F32), io("timm_vit"), io("peft_timm"));
    let mut model = base.with_adapter(folder("peft_timm")).unwrap();
    let saved = tempfile::tempdir().unwrap();
    model.save_adapter(saved.path()).unwrap();
    let logits = model.forward(&io["images"]).unwrap();
    assert_close("unmerged", &logits, &peft["logits"], 1e-5);
    assert!(relative_error(&io["logits"], &logits).unwrap() > 1e-3);
    model.merge().unwrap();
    let logits = model.forward(&io["images"]).unwrap();
    assert_close("merged", &logits, &peft["logits"], 1e-5);

    let tensors = |dir: &Path| -> BTreeMap<String, Vec<f64>> {
        let tensors = load(dir.join("adapter_model.safetensors"), &Device::Cpu);
        let tensors = tensors.unwrap().into_iter();
        tensors
            .map(|(key, value)| (key, values(&value).unwrap()))
            .collect()
    };
    assert!(tensors(saved.path()) == tensors(&folder("peft_timm")));
}

/// transformers 5 calls layers by other names than the files.
#[test]
fn adapters_of_transformers_5_load() {
    for case in ["vit", "deit", "dinov2", "clip"] {
        let (base, io) = (of(case, DType::F32), io(case));
        let adapter = folder("peft").join(case);
        let expected = load(adapter.join("io.safetensors"), &Device::Cpu).unwrap();
        let directory = base.config().adapter_of_transformers_5(&adapter);
        let model = base.with_adapter(directory);
        let model = model.unwrap_or_else(|error| panic!("{case}: {error}"));
        let logits = model.forward(&io["images"]).unwrap();
        assert_close(case, &logits, &expected["logits"], 1e-5);
        assert!(relative_error(&io["logits"], &logits).unwrap() > 1e-3);
    }
}

#[test]
fn three_steps_are_pefts() {
    let (base, io, peft) = (of("timm_vit", DType::F32), io("timm_vit"), io("peft_timm"));
    let mut model = base.with_adapter(folder("peft_timm")).unwrap();
    model.train();
    let params = ParamsAdamW {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
    };
    let mut optimizer = AdamW::for_model(&model, params).unwrap();
    let labels = peft["labels"].to_dtype(DType::U32).unwrap();
    for expected in values(&peft["losses"]).unwrap() {
        let loss = cross_entropy(&model.forward(&io["images"]).unwrap(), &labels).unwrap();
        let found = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((found - expected).abs() < 1e-4 * expected);
        optimizer.backward_step(&loss).unwrap();
    }
    let mut compared = 0;
    for param in model.named_params() {
        if let Some(expected) = peft.get(&format!("trained.{}", param.path)) {
            assert_close(&param.path, &param.tensor, expected, 1e-4);
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 2 * 2 + 2);
}

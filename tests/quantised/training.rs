//! A GGUF file under an adapter of PEFT's, beside PEFT on the dequantised weights.

use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use lora::models::decoder::Decoder;
use lora::models::{self, Options};
use lora::{Lora, LoraModel, LoraModule};
use lora_tests::{assert_close, values};
use std::collections::HashMap;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/quantised");
    PathBuf::from(folder).join(name)
}

fn expected() -> HashMap<String, Tensor> {
    load(fixture("training.safetensors"), &Device::Cpu).unwrap()
}

fn adapted() -> Lora<Decoder> {
    let auto = models::auto(fixture("llama.gguf"), &Options::new()).unwrap();
    let base = auto.into_decoder().unwrap().model;
    let model = base.with_adapter(fixture("adapter")).unwrap();
    let rows = model.summary().rows.into_iter();
    assert_eq!(rows.filter(|row| row.quantised.is_some()).count(), 16);
    model
}

#[test]
fn outputs_are_pefts_on_the_dequantised_weights() {
    let (mut model, expected) = (adapted(), expected());
    for training in [false, true] {
        if training {
            model.train();
        }
        let logits = model.forward(&expected["ids"], None).unwrap();
        assert_close("logits", &logits, &expected["logits"], 1e-4);
    }
}

#[test]
fn three_steps_are_pefts_on_the_dequantised_weights() {
    let (mut model, expected) = (adapted(), expected());
    model.train();
    let params = ParamsAdamW {
        lr: 1e-2,
        weight_decay: 0.01,
        ..ParamsAdamW::default()
    };
    let mut optimizer = AdamW::new(model.trainable_vars(), params).unwrap();
    let ids = &expected["ids"];
    let next = ids.narrow(1, 1, 13).unwrap().flatten_all().unwrap();
    let losses = values(&expected["losses"]).unwrap();
    assert_eq!(losses.len(), 4);
    for (step, expected) in losses.into_iter().enumerate() {
        let logits = model.forward(ids, None).unwrap();
        let logits = logits.narrow(1, 0, 13).unwrap().flatten_to(1).unwrap();
        let loss = cross_entropy(&logits, &next).unwrap();
        let error = (values(&loss).unwrap()[0] - expected).abs() / expected;
        assert!(error <= 1e-4, "step {step}: {error:e}");
        if step < 3 {
            let grads = model.backward(&loss).unwrap();
            optimizer.step(&grads).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path()).unwrap();
    let ours = load(dir.path().join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(ours.len(), 28);
    for (name, tensor) in &ours {
        assert_close(name, tensor, &expected[&format!("trained.{name}")], 1e-3);
    }
}

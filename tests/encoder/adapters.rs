//! PEFT's adapters, both ways, and its training steps.

use super::{Io, folder, read};
use candle_core::safetensors::load;
use candle_core::{DType, Device};
use candle_nn::{Optimizer, ParamsAdamW};
use lora::models::Task;
use lora::ops::cross_entropy;
use lora::optim::AdamW;
use lora::{LoraModel, LoraModule};
use lora_tests::{assert_close, values};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The folders that `make.py` writes under `peft`.
const ADAPTERS: [&str; 3] = ["bert", "roberta", "distilbert"];

fn adapter(case: &str) -> std::path::PathBuf {
    folder("peft").join(case)
}

fn setting(dir: &Path, key: &str) -> Value {
    let text = fs::read(dir.join("adapter_config.json")).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    json[key].clone()
}

#[test]
fn pefts_adapters_give_pefts_logits() {
    for case in ADAPTERS {
        let base = read(case, Task::SequenceClassification).model;
        let (io, peft) = (Io::of(case), Io::new(&adapter(case)));
        let mut model = base.with_adapter(adapter(case)).unwrap();
        model.eval();
        let logits = model.forward(&io.inputs(), false).unwrap();
        assert_close(case, &logits, peft.get("logits"), 1e-5);
        assert!(lora_tests::relative_error(io.get("sequence"), &logits).unwrap() > 1e-3);
        model.merge().unwrap();
        let logits = model.forward(&io.inputs(), false).unwrap();
        assert_close(case, &logits, peft.get("logits"), 1e-5);
    }
}

/// What is saved has PEFT's keys, values, targets and modules.
#[test]
fn saved_adapters_are_pefts() {
    for case in ADAPTERS {
        let base = read(case, Task::SequenceClassification).model;
        let model = base.with_adapter(adapter(case)).unwrap();
        let saved = tempfile::tempdir().unwrap();
        model.save_adapter(saved.path()).unwrap();
        let tensors = |dir: &Path| -> BTreeMap<String, Vec<f64>> {
            let file = dir.join("adapter_model.safetensors");
            let tensors = load(file, &Device::Cpu).unwrap().into_iter();
            tensors
                .map(|(key, value)| (key, values(&value).unwrap()))
                .collect()
        };
        let (ours, theirs) = (tensors(saved.path()), tensors(&adapter(case)));
        assert_eq!(
            ours.keys().collect::<Vec<_>>(),
            theirs.keys().collect::<Vec<_>>()
        );
        assert!(ours == theirs, "{case}");
        for key in ["r", "lora_alpha", "target_modules"] {
            let sorted = |mut value: Value| {
                if let Value::Array(names) = &mut value {
                    names.sort_by_key(ToString::to_string);
                }
                value
            };
            let (ours, theirs) = (setting(saved.path(), key), setting(&adapter(case), key));
            assert_eq!(sorted(ours), sorted(theirs), "{case}, {key}");
        }
    }
}

/// Without settings the adapted layers are PEFT's default ones.
#[test]
fn marked_layers_are_pefts_default() {
    for (case, names) in [
        ("bert", [".attention.self.query", ".attention.self.value"]),
        (
            "xlm_roberta",
            [".attention.self.query", ".attention.self.value"],
        ),
        ("distilbert", [".attention.q_lin", ".attention.v_lin"]),
    ] {
        let base = read(case, Task::TokenClassification).model;
        let model = base.to_lora(&lora::LoraConfig::new(1)).unwrap();
        let params = model.named_params().into_iter();
        let adapted = params.filter(|param| matches!(param.role, lora::Role::Adapter(_)));
        for param in adapted {
            let found = names.iter().any(|name| param.path.contains(name));
            assert!(found, "{}", param.path);
        }
        assert_eq!(model.trainable_vars().len(), 2 * 2 * 2);
    }
}

#[test]
fn three_steps_are_pefts() {
    for case in ADAPTERS {
        let base = read(case, Task::SequenceClassification).model;
        let (io, peft) = (Io::of(case), Io::new(&adapter(case)));
        let mut model = base.with_adapter(adapter(case)).unwrap();
        model.train();
        let params = ParamsAdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        };
        let mut optimizer = AdamW::for_model(&model, params).unwrap();
        let labels = peft.get("labels").to_dtype(DType::U32).unwrap();
        for expected in values(peft.get("losses")).unwrap() {
            let logits = model.forward(&io.inputs(), false).unwrap();
            let loss = cross_entropy(&logits, &labels).unwrap();
            let found = loss.to_scalar::<f32>().unwrap();
            assert!(
                (f64::from(found) - expected).abs() < 1e-4 * expected,
                "{case}"
            );
            optimizer.backward_step(&loss).unwrap();
        }
        let mut compared = 0;
        for param in model.named_params() {
            if let Some(expected) = peft.0.get(&format!("trained.{}", param.path)) {
                assert_close(
                    &format!("{case}, {}", param.path),
                    &param.tensor,
                    expected,
                    1e-4,
                );
                compared += 1;
            }
        }
        let trained = peft.0.keys().filter(|key| key.starts_with("trained."));
        assert_eq!(compared, trained.count(), "{case}");
    }
}

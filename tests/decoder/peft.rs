//! Adapters that PEFT made, both ways, and training beside PEFT.

use super::{folder, io, read};
use candle_core::safetensors::load;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use lora::models::decoder::Decoder;
use lora::peft::AdapterDir;
use lora::{Lora, LoraModel, LoraModule};
use lora_tests::assert_close;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The folders that `make_peft.py` writes.
const CASES: [&str; 6] = [
    "llama_llama3",
    "gemma2",
    "qwen3_moe",
    "qwen3_moe_joined",
    "mixtral_joined",
    "phi3_partial",
];

/// The base model of a case.
fn base(case: &str, dtype: DType) -> Decoder {
    read(case.trim_end_matches("_joined"), dtype).model
}

fn of_peft(case: &str) -> PathBuf {
    folder("peft").join(case)
}

fn adapted(case: &str, dtype: DType) -> Lora<Decoder> {
    let base = base(case, dtype);
    let adapter = AdapterDir::new(of_peft(case).join("adapter"));
    // transformers 5 calls the mixture of Mixtral by another name than the checkpoints.
    let adapter = match case {
        "mixtral_joined" => adapter.rename("model.layers.*.mlp", "model.layers.*.block_sparse_moe"),
        _ => adapter,
    };
    let model = base.with_adapter(adapter);
    model.unwrap_or_else(|error| panic!("{case}: {error}"))
}

/// The values of the positions that are no padding, one after the other.
fn tokens(xs: &Tensor) -> Tensor {
    let xs = xs.to_dtype(DType::F64).unwrap();
    let (first, second) = (xs.get(0).unwrap(), xs.get(1).unwrap());
    Tensor::cat(&[first, second.narrow(0, 5, 9).unwrap()], 0).unwrap()
}

fn saved(directory: &Path) -> HashMap<String, Tensor> {
    load(directory.join("adapter_model.safetensors"), &Device::Cpu).unwrap()
}

/// Outputs are PEFT's, and so is the file that is saved back: its keys, shapes and values.
#[test]
fn adapters_go_both_ways() {
    for case in CASES {
        let (mut model, io) = (
            adapted(case, DType::F32),
            io(case.trim_end_matches("_joined")),
        );
        let expected = load(of_peft(case).join("io.safetensors"), &Device::Cpu).unwrap();
        let run = |model: &Lora<Decoder>| {
            let logits = model.forward(&io["ids"], Some(&io["mask"])).unwrap();
            assert_close(case, &tokens(&logits), &tokens(&expected["logits"]), 1e-5);
        };
        run(&model);
        let base = base(case, DType::F32);
        let plain = base.forward(&io["ids"], Some(&io["mask"])).unwrap();
        let difference = lora_tests::relative_error(&plain, &expected["logits"]).unwrap();
        assert!(
            difference > 0.05,
            "{case}: the adapter changes {difference}"
        );

        let directory = tempfile::tempdir().unwrap();
        model.save_adapter(directory.path()).unwrap();
        let (ours, theirs) = (
            saved(directory.path()),
            saved(&of_peft(case).join("adapter")),
        );
        // Joined experts are split for a model that has each by itself.
        if !case.ends_with("_joined") {
            assert_eq!(ours.len(), theirs.len(), "{case}");
            for (name, tensor) in &theirs {
                assert_close(name, &ours[name], tensor, 0.0);
            }
        }
        run(&base.with_adapter(directory.path()).unwrap());

        model.merge().unwrap();
        run(&model);
        let merged: Decoder = model.to_base().unwrap();
        let logits = merged.forward(&io["ids"], Some(&io["mask"])).unwrap();
        assert_close(case, &tokens(&logits), &tokens(&expected["logits"]), 1e-5);
    }
}

/// The loss of the next token.
fn loss(logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let logits = logits.narrow(1, 0, 13)?.flatten_to(1)?;
    cross_entropy(&logits, &ids.narrow(1, 1, 13)?.flatten_all()?)
}

fn train(case: &str, dtype: DType) {
    let (mut model, io) = (adapted(case, dtype), io(case));
    let expected = load(of_peft(case).join("io.safetensors"), &Device::Cpu).unwrap();
    model.train();
    let params = ParamsAdamW {
        lr: 1e-2,
        weight_decay: 0.01,
        ..ParamsAdamW::default()
    };
    let mut optimizer = AdamW::new(model.trainable_vars(), params).unwrap();
    let losses: Vec<f64> = expected["losses"].to_vec1().unwrap();
    assert_eq!(losses.len(), 4);
    for (step, &expected) in losses.iter().enumerate() {
        let logits = model.forward(&io["ids"], None).unwrap();
        let loss = loss(&logits, &io["ids"]).unwrap();
        let grads = model.backward(&loss).unwrap();
        let error = (lora_tests::values(&loss).unwrap()[0] - expected).abs();
        assert!(error <= 1e-5, "{case}, step {step}: {error}");
        if step < 3 {
            optimizer.step(&grads).unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter(directory.path()).unwrap();
    let ours = saved(directory.path());
    let trained = |name: &str| format!("trained.{name}");
    assert_eq!(expected.len() - 2, ours.len());
    for (name, tensor) in &ours {
        let what = format!("{case}, {name}");
        assert_close(&what, tensor, &expected[&trained(name)], 1e-4);
    }
}

#[test]
fn three_steps_are_pefts() {
    for case in ["llama_llama3", "gemma2"] {
        train(case, DType::F32);
        train(case, DType::F64);
    }
}

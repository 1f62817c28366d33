//! Hidden states and logits, with and without padding.

use super::{CASES, folder, io, read};
use candle_core::{DType, Tensor};
use lora::LoraModel;
use lora_tests::assert_close;
use std::fs;

/// The largest error in f32, relative to the largest value.
const TOLERANCE: f64 = 1e-5;

/// The last positions of the second row, which the mask of the fixtures leaves.
fn tokens(xs: &Tensor, mask: &Tensor) -> Tensor {
    let mask: Vec<Vec<f32>> = mask.to_dtype(DType::F32).unwrap().to_vec2().unwrap();
    let first = mask[1].iter().position(|&token| token == 1.0).unwrap();
    assert_eq!(first, 5);
    xs.get(1).unwrap().narrow(0, first, 14 - first).unwrap()
}

#[test]
fn are_those_of_transformers() {
    for case in CASES {
        let (model, io) = (read(case, DType::F32).model, io(case));
        let hidden = model.hidden_states(&io["ids"], None, None).unwrap();
        assert_close(
            &format!("{case}, hidden"),
            &hidden,
            &io["hidden"],
            TOLERANCE,
        );
        let logits = model.forward(&io["ids"], None).unwrap();
        assert_close(
            &format!("{case}, logits"),
            &logits,
            &io["logits"],
            TOLERANCE,
        );
        let frozen = model.to_frozen().unwrap();
        let logits = frozen.forward(&io["ids"], None).unwrap();
        assert_close(
            &format!("{case}, frozen"),
            &logits,
            &io["logits"],
            TOLERANCE,
        );
        let Some(expected) = io.get("padded_logits") else {
            continue;
        };
        let mask = &io["mask"];
        let logits = model.forward(&io["ids"], Some(mask)).unwrap();
        let (logits, expected) = (tokens(&logits, mask), tokens(expected, mask));
        assert_close(&format!("{case}, padded"), &logits, &expected, TOLERANCE);
    }
}

/// Every folder of the fixtures is read by the tests.
#[test]
fn every_case_is_listed() {
    let mut folders: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder("")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().join("config.json").exists() {
            folders.push(entry.file_name().into_string().unwrap());
        }
    }
    folders.sort_unstable();
    let mut cases = CASES.to_vec();
    cases.sort_unstable();
    assert_eq!(folders, cases);
}

/// In bf16 the numbers are those of f32, rounded.
#[test]
fn half_types_compute() {
    for case in ["llama_linear", "gemma2", "qwen3_moe", "phi3_partial"] {
        let (model, io) = (read(case, DType::BF16).model, io(case));
        let logits = model.forward(&io["ids"], None).unwrap();
        assert_eq!(logits.dtype(), DType::BF16);
        assert_close(case, &logits, &io["logits"], 5e-2);
    }
}

//! Hidden states and the logits of each head.

use super::{CASES, HEADS, Io, SENTENCES, folder, read, read_with};
use candle_core::{DType, Device, Tensor};
use lora::models::encoder::Inputs;
use lora::models::{Options, Task};
use lora::{LoraConfig, LoraModel};
use lora_tests::{assert_close, fill_adapters};
use std::fs;

/// The largest error in f32, relative to the largest value.
const TOLERANCE: f64 = 1e-5;

#[test]
fn hidden_states_are_those_of_transformers() {
    for case in CASES.iter().chain(&SENTENCES) {
        let (model, io) = (read(case, Task::Features).model, Io::of(case));
        let plain = model.forward(&Inputs::new(io.get("ids")), false).unwrap();
        assert_close(
            &format!("{case}, plain"),
            &plain,
            io.get("plain"),
            TOLERANCE,
        );
        let hidden = model.forward(&io.inputs(), false).unwrap();
        let (hidden, expected) = (io.at_tokens(&hidden), io.expected_at_tokens("hidden"));
        assert_close(&format!("{case}, padded"), &hidden, &expected, TOLERANCE);
        let frozen = model.to_frozen().unwrap();
        let hidden = frozen.hidden_states(&io.inputs(), false).unwrap();
        let what = format!("{case}, frozen");
        assert_close(&what, &io.at_tokens(&hidden), &expected, TOLERANCE);
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for case in CASES {
        let io = Io::of(case);
        for (name, task) in HEADS {
            let created = read(case, task);
            assert!(
                created.fresh.is_empty(),
                "{case}, {name}: {:?}",
                created.fresh
            );
            let logits = created.model.forward(&io.inputs(), false).unwrap();
            let (logits, expected) = match name {
                "sequence" => (io.of_texts(&logits), io.of_texts(io.get(name))),
                _ => (io.at_tokens(&logits), io.expected_at_tokens(name)),
            };
            assert_close(&format!("{case}, {name}"), &logits, &expected, TOLERANCE);
        }
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
    let mut cases: Vec<&str> = CASES.iter().chain(&SENTENCES).copied().collect();
    cases.sort_unstable();
    assert_eq!(folders, cases);
}

/// A text has in a batch, padded on either side or not at all, what it has alone. RoBERTa counts its
/// positions without padding, the others with.
#[test]
fn a_padded_batch_equals_single_texts() {
    for case in CASES {
        for (name, task) in HEADS {
            let options = Options::new().task(task).dtype(DType::F64);
            let created = read_with(case, &options);
            let pad = created.config.pad_token_id.unwrap();
            let model = created.model.to_lora(&LoraConfig::new(2).seed(1)).unwrap();
            fill_adapters(&model);
            let short = Tensor::new(&[[7u32, 11, 9, 23, 8]], &Device::Cpu).unwrap();
            let long = Tensor::new(&[[8u32, 30, 12, 6, 19, 40, 22, 14]], &Device::Cpu).unwrap();
            let padding = Tensor::full(pad, (1, 3), &Device::Cpu).unwrap();
            let padded = Tensor::cat(&[&short, &padding], 1).unwrap();
            let ids = Tensor::cat(&[&padded, &long], 0).unwrap();
            let mask = [[1u8, 1, 1, 1, 1, 0, 0, 0], [1; 8]];
            let mask = Tensor::new(&mask, &Device::Cpu).unwrap();
            let both = model
                .forward(&Inputs::new(&ids).mask(&mask), false)
                .unwrap();
            for (row, alone) in [&short, &long].into_iter().enumerate() {
                let time = alone.dim(1).unwrap();
                let alone = model.forward(&Inputs::new(alone), false).unwrap();
                let row = both.get(row).unwrap().unsqueeze(0).unwrap();
                let row = match name {
                    "sequence" => row,
                    _ => row.narrow(1, 0, time).unwrap(),
                };
                assert_close(&format!("{case}, {name}"), &row, &alone, 1e-9);
            }
        }
    }
}

/// In bf16 the numbers are those of f32, rounded.
#[test]
fn half_types_compute() {
    for case in ["bert", "roberta", "distilbert", "modernbert_bias"] {
        let options = Options::new().task(Task::SequenceClassification);
        let (created, io) = (read_with(case, &options.dtype(DType::BF16)), Io::of(case));
        let model = created.model.to_frozen().unwrap();
        for train in [false, true] {
            let logits = model.forward(&io.inputs(), train).unwrap();
            assert_eq!(logits.dtype(), DType::BF16);
            if !train {
                let (logits, expected) = (io.of_texts(&logits), io.of_texts(io.get("sequence")));
                assert_close(case, &logits, &expected, 5e-2);
            }
        }
        let embedding = model.embed(&io.inputs(), false).unwrap();
        assert_close(case, &embedding, io.get("mean"), 5e-2);
    }
}

#[test]
fn wrong_inputs_are_errors() {
    let device = &Device::Cpu;
    let model = read("bert", Task::MaskedLm).model;
    let ids = Tensor::new(&[[7u32, 11, 9]], device).unwrap();
    // With a backtrace in the environment, candle's errors print one.
    let first = |error: candle_core::Error| error.to_string().lines().next().unwrap().to_string();
    let error = |inputs: Inputs<'_>| first(model.forward(&inputs, false).unwrap_err());
    let row = ids.get(0).unwrap();
    assert_eq!(
        error(Inputs::new(&row)),
        "the ids must be integers of shape (batch, time), they are U32 of shape [3]"
    );
    let mask = Tensor::new(&[[1u8, 1]], device).unwrap();
    assert_eq!(
        error(Inputs::new(&ids).mask(&mask)),
        "the padding mask is [1, 2], the ids are [1, 3]"
    );
    assert_eq!(
        error(Inputs::new(&ids).types(&mask)),
        "the token types are [1, 2], the ids are [1, 3]"
    );
    let mask = Tensor::new(&[[0f32, 2., 1.]], device).unwrap();
    assert_eq!(
        error(Inputs::new(&ids).mask(&mask)),
        "the padding mask is 1 for a token and 0 for padding, it holds 2"
    );
    let long = Tensor::full(7u32, (1, 25), device).unwrap();
    let too_long = "the model has positions for 24 (`max_position_embeddings`): cut longer texts";
    assert_eq!(
        error(Inputs::new(&long)),
        format!("a text has 25 tokens, {too_long}")
    );
    let unknown = Tensor::new(&[[7u32, 56]], device).unwrap();
    assert!(model.forward(&Inputs::new(&unknown), false).is_err());
    let types = Tensor::new(&[[0u32, 3, 0]], device).unwrap();
    assert!(
        model
            .forward(&Inputs::new(&ids).types(&types), false)
            .is_err()
    );

    // RoBERTa's positions begin behind that of padding, 1.
    let roberta = read("roberta", Task::Features).model;
    let fits = Tensor::full(7u32, (1, 22), device).unwrap();
    assert!(roberta.forward(&Inputs::new(&fits), false).is_ok());
    let long = Tensor::full(7u32, (1, 23), device).unwrap();
    assert_eq!(
        first(roberta.forward(&Inputs::new(&long), false).unwrap_err()),
        "a text has 23 tokens, the model has positions for 22 (`max_position_embeddings`): cut longer texts"
    );
    for case in ["distilbert", "modernbert"] {
        let model = read(case, Task::Features).model;
        assert_eq!(
            first(
                model
                    .forward(&Inputs::new(&ids).types(&ids), false)
                    .unwrap_err()
            ),
            "this model has no kinds of tokens: leave the token types out"
        );
    }
    // A text of padding alone is computed, and harms no other, in training neither.
    let two = Tensor::cat(&[&ids, &ids], 0).unwrap();
    let mask = Tensor::new(&[[1u8, 1, 1], [0, 0, 0]], device).unwrap();
    for case in ["bert", "modernbert"] {
        let model = read(case, Task::Features).model.to_frozen().unwrap();
        let alone = model.forward(&Inputs::new(&ids), false).unwrap();
        let inputs = Inputs::new(&two).mask(&mask);
        let both = model.forward(&inputs, false).unwrap();
        assert_close(case, &both.get(0).unwrap(), &alone.get(0).unwrap(), 2e-6);
        for hidden in [both, model.forward(&inputs, true).unwrap()] {
            let mut values = lora_tests::values(&hidden).unwrap().into_iter();
            assert!(values.all(f64::is_finite), "{case}");
        }
    }
}

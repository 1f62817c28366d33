//! The cache of keys and values, and batches of sequences of different lengths.

use super::{CASES, folder, io, read};
use candle_core::safetensors::load;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use lora::LoraModule;
use lora::models::decoder::{Cache, Decoder};
use lora::{LoraConfig, LoraModel};
use lora_tests::assert_close;

const TOLERANCE: f64 = 2e-6;

/// The logits of the pieces of this many positions, one after the other.
fn in_pieces(
    model: &Decoder,
    ids: &Tensor,
    mask: Option<&Tensor>,
    pieces: &[usize],
) -> Result<Tensor> {
    let mut cache = Cache::new(model.config());
    let mut logits = Vec::new();
    for &piece in pieces {
        let start = cache.len();
        let mask = mask.map(|mask| mask.narrow(1, start, piece)).transpose()?;
        let ids = ids.narrow(1, start, piece)?;
        logits.push(model.forward_cached(&ids, mask.as_ref(), &mut cache)?);
        assert_eq!(cache.len(), start + piece);
    }
    Tensor::cat(&logits, 1)
}

/// Angles that depend on the length differ in the middle of a sequence, of which the cache has not
/// seen the end.
const VARYING: [&str; 3] = ["llama_dynamic", "llama_longrope", "phi3_longrope"];

#[test]
fn equals_no_cache() {
    for case in CASES {
        let (model, io) = (read(case, DType::F64).model, io(case));
        // No piece may change the angles: the lengths stay on one side of the original, 8.
        let (time, pieces): (_, [&[usize]; 2]) = match case {
            "llama_dynamic" => (8, [&[6, 1, 1], &[1, 3, 4]]),
            _ if VARYING.contains(&case) => (14, [&[9, 1, 4], &[10, 3, 1]]),
            _ => (14, [&[6, 1, 4, 1, 1, 1], &[1, 1, 1, 3, 7, 1]]),
        };
        let ids = io["ids"].narrow(1, 0, time).unwrap();
        let mask = io["mask"].narrow(1, 0, time).unwrap();
        for mask in [None, Some(&mask)] {
            if case.ends_with("longrope") && mask.is_some() {
                continue;
            }
            let whole = model.forward(&ids, mask).unwrap();
            for pieces in pieces {
                let parts = in_pieces(&model, &ids, mask, pieces).unwrap();
                let what = format!("{case}, {pieces:?}, {}", mask.is_some());
                let row = |xs: &Tensor| xs.get(1).unwrap().narrow(0, 5, time - 5).unwrap();
                let first = |xs: &Tensor| xs.get(0).unwrap();
                assert_close(&what, &first(&parts), &first(&whole), 1e-9);
                assert_close(&what, &row(&parts), &row(&whole), 1e-9);
            }
        }
    }
}

/// Where a piece changes the angles, cached keys turn by the new ones. In a model of one layer the
/// last position then has all that it has without a cache.
#[test]
fn cached_keys_turn_by_the_angles_of_the_whole() {
    for case in VARYING {
        let (mut config, io) = (read(case, DType::F64).config, io(case));
        config.layers.truncate(1);
        let weights = folder(case).join("model.safetensors");
        let weights = load(weights, &Device::Cpu).unwrap();
        let vb = VarBuilder::from_tensors(weights, DType::F64, &Device::Cpu);
        let model = Decoder::new(&config, vb).unwrap();
        let ids = &io["ids"];
        let last = |xs: Tensor| xs.narrow(1, 13, 1).unwrap();
        let whole = last(model.forward(ids, None).unwrap());
        let parts = last(in_pieces(&model, ids, None, &[3, 6, 4, 1]).unwrap());
        assert_close(case, &parts, &whole, 1e-9);
    }
}

/// A row of a padded batch, on either side, has the logits that it has alone, and so have the tokens
/// after it.
#[test]
fn a_padded_batch_equals_single_rows() {
    let device = &Device::Cpu;
    for case in CASES {
        let model = read(case, DType::F32).model;
        let short = Tensor::new(&[[7u32, 11, 4, 9, 23]], device).unwrap();
        let long = Tensor::new(&[[5u32, 8, 30, 12, 6, 19, 40, 3, 22, 14]], device).unwrap();
        let next = Tensor::new(&[[9u32, 17], [31, 5]], device).unwrap();
        let alone = |ids: &Tensor, row| {
            let mut cache = Cache::new(model.config());
            let first = model.forward_cached(ids, None, &mut cache).unwrap();
            let next = next.get(row).unwrap().unsqueeze(0).unwrap();
            (
                first,
                model.forward_cached(&next, None, &mut cache).unwrap(),
            )
        };
        let ((short_first, short_next), (long_first, long_next)) =
            (alone(&short, 0), alone(&long, 1));
        for left in [true, false] {
            let padding = Tensor::zeros((1, 5), DType::U32, device).unwrap();
            let join = |tokens: &Tensor| {
                let order = if left {
                    [&padding, tokens]
                } else {
                    [tokens, &padding]
                };
                Tensor::cat(&order, 1).unwrap()
            };
            let ids = Tensor::cat(&[&join(&short), &long], 0).unwrap();
            let ones = Tensor::ones((1, 5), DType::U32, device).unwrap();
            let mask = join(&ones);
            let mask = Tensor::cat(
                &[&mask, &Tensor::ones((1, 10), DType::U32, device).unwrap()],
                0,
            );
            let mask = mask.unwrap();
            let mut cache = Cache::new(model.config());
            let first = model.forward_cached(&ids, Some(&mask), &mut cache).unwrap();
            let then = model.forward_cached(&next, None, &mut cache).unwrap();
            let what = format!(
                "{case}, padded on the {}",
                if left { "left" } else { "right" }
            );
            let start = if left { 5 } else { 0 };
            let row = |xs: &Tensor, row, start, count| {
                xs.get(row).unwrap().narrow(0, start, count).unwrap()
            };
            assert_close(
                &what,
                &row(&first, 0, start, 5),
                &short_first.get(0).unwrap(),
                TOLERANCE,
            );
            assert_close(
                &what,
                &row(&first, 1, 0, 10),
                &long_first.get(0).unwrap(),
                TOLERANCE,
            );
            assert_close(
                &what,
                &row(&then, 0, 0, 2),
                &short_next.get(0).unwrap(),
                TOLERANCE,
            );
            assert_close(
                &what,
                &row(&then, 1, 0, 2),
                &long_next.get(0).unwrap(),
                TOLERANCE,
            );
            let plain = model.forward(&ids, Some(&mask)).unwrap();
            assert_close(
                &what,
                &row(&plain, 0, start, 5),
                &short_first.get(0).unwrap(),
                TOLERANCE,
            );
        }
    }
}

#[test]
fn serves_a_lora_model() {
    let (model, io) = (read("gemma3", DType::F32).model, io("gemma3"));
    let mut model = model.to_lora(&LoraConfig::new(2).seed(3)).unwrap();
    lora_tests::fill_adapters(&model);
    model.eval();
    let ids = &io["ids"];
    let whole = model.forward(ids, None).unwrap();
    let mut cache = Cache::new(model.config());
    let first = model
        .forward_cached(&ids.narrow(1, 0, 9).unwrap(), None, &mut cache)
        .unwrap();
    let rest = model
        .forward_cached(&ids.narrow(1, 9, 5).unwrap(), None, &mut cache)
        .unwrap();
    let parts = Tensor::cat(&[first, rest], 1).unwrap();
    assert_close("cached", &parts, &whole, TOLERANCE);
    cache.reset();
    assert!(cache.is_empty());
    let again = model.forward_cached(ids, None, &mut cache).unwrap();
    assert_close("after reset", &again, &whole, TOLERANCE);
}

/// Two continuations of one start do not disturb each other.
#[test]
fn forks_go_on_by_themselves() {
    let (model, io) = (read("gemma3", DType::F64).model, io("gemma3"));
    let ids = &io["ids"];
    let start = ids.narrow(1, 0, 8).unwrap();
    let mut cache = Cache::new(model.config());
    model.forward_cached(&start, None, &mut cache).unwrap();
    let mut fork = cache.fork().unwrap();
    let ends = [ids.narrow(1, 8, 6).unwrap(), ids.narrow(1, 2, 6).unwrap()];
    for time in 0..6 {
        for (end, cache) in ends.iter().zip([&mut cache, &mut fork]) {
            let next = end.narrow(1, time, 1).unwrap();
            let logits = model.forward_cached(&next, None, cache).unwrap();
            let whole = Tensor::cat(&[&start, &end.narrow(1, 0, time + 1).unwrap()], 1).unwrap();
            let whole = model.forward(&whole, None).unwrap();
            let last = whole.narrow(1, 8 + time, 1).unwrap();
            assert_close("fork", &logits, &last, 1e-9);
        }
    }
}

#[test]
fn wrong_inputs_are_errors() {
    let model = read("llama_linear", DType::F32).model;
    let device = &Device::Cpu;
    let ids = Tensor::new(&[[7u32, 11, 4]], device).unwrap();
    // With a backtrace in the environment, candle's errors print one.
    let error = |result: Result<Tensor>| {
        let error = result.unwrap_err().to_string();
        error.lines().next().unwrap().to_string()
    };
    let text = error(model.forward(&ids.get(0).unwrap(), None));
    assert_eq!(
        text,
        "the ids must be integers of shape (batch, time), they are U32 of shape [3]"
    );
    let floats = ids.to_dtype(DType::F32).unwrap();
    assert!(error(model.forward(&floats, None)).contains("they are F32"));
    let mask = Tensor::new(&[[1u8, 1]], device).unwrap();
    assert_eq!(
        error(model.forward(&ids, Some(&mask))),
        "the padding mask is [1, 2], the ids are [1, 3]"
    );
    let mask = Tensor::new(&[[0f32, -1., 0.]], device).unwrap();
    assert_eq!(
        error(model.forward(&ids, Some(&mask))),
        "the padding mask is 0 for padding and 1 for a token, or the number of its text where several are \
         packed in a row; it holds -1"
    );
    for unknown in [56, u32::MAX] {
        let unknown = Tensor::new(&[[7, unknown]], device).unwrap();
        assert!(model.forward(&unknown, None).is_err());
    }
    let negative = Tensor::new(&[[7i64, -1]], device).unwrap();
    assert!(model.forward(&negative, None).is_err());
    let bytes = ids.to_dtype(DType::U8).unwrap();
    let (a, b) = (model.forward(&bytes, None), model.forward(&ids, None));
    assert_close("u8", &a.unwrap(), &b.unwrap(), 0.0);

    let mut cache = Cache::new(model.config());
    model.forward_cached(&ids, None, &mut cache).unwrap();
    let two = Tensor::cat(&[&ids, &ids], 0).unwrap();
    assert_eq!(
        error(model.forward_cached(&two, None, &mut cache)),
        "the cache holds 1 sequences, the batch has 2"
    );
    let other = read("qwen2_window", DType::F32).model;
    let mut cache = Cache::new(other.config());
    assert_eq!(
        error(model.forward_cached(&ids, None, &mut cache)),
        "the cache is for 3 layers, the model has 2"
    );
    let none = Tensor::zeros((2, 0), DType::U32, device).unwrap();
    assert!(error(model.forward(&none, None)).ends_with("they are U32 of shape [2, 0]"));
    // A row of padding alone is computed, and harms no other.
    let mask = Tensor::new(&[[1u8, 1, 1], [0, 0, 0]], device).unwrap();
    let logits = model.forward(&two, Some(&mask)).unwrap();
    let alone = model.forward(&ids, None).unwrap();
    assert_close(
        "beside padding",
        &logits.get(0).unwrap(),
        &alone.get(0).unwrap(),
        TOLERANCE,
    );
    assert!(
        lora_tests::values(&logits)
            .unwrap()
            .iter()
            .all(|value| value.is_finite())
    );
}

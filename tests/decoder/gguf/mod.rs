//! Decoders in GGUF files, against the same models with dequantised weights.

mod adapters;
mod directory;
mod experts;
mod files;
mod merge;
mod support;

use super::io;
use candle_core::quantized::{GgmlDType, QMatMul};
use lora::layers::GGML_TYPES;
use lora::models::decoder::Decoder;
use lora_tests::assert_close;
use support::{ids, pair, wide};

/// Each family, with its settings.
const FAMILIES: [&str; 16] = [
    "llama_linear",
    "llama_llama3",
    "smollm2",
    "mistral_full",
    "mistral_window",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_scaled",
    "phi3_partial",
    "phi3_longrope",
    "olmo2",
    "granite",
];

#[test]
fn each_family_computes_what_its_dequantised_weights_do() {
    for case in FAMILIES {
        for kind in [GgmlDType::F32, GgmlDType::Q8_0] {
            let (pair, io) = (pair(case, kind), io(case));
            let (quantised, full) = (pair.quantised(), pair.full());
            assert_eq!(quantised.config().ropes.len(), full.config().ropes.len());
            let expected = full.forward(&io["ids"], None).unwrap();
            let what = format!("{case}, {kind:?}");
            let logits = quantised.forward(&io["ids"], None).unwrap();
            assert_close(&what, &logits, &expected, 1e-4);
        }
    }
}

#[test]
fn each_type_stays_in_its_blocks() {
    for kind in GGML_TYPES {
        if kind == GgmlDType::Q8_1 {
            continue; // inputs only: no file holds a weight in it
        }
        let pair = wide(kind);
        let (quantised, full) = (pair.quantised(), pair.full());
        let expected = full.forward(&ids(), None).unwrap();
        let logits = quantised.forward(&ids(), None).unwrap();
        assert_close(&format!("{kind:?}"), &logits, &expected, 1e-4);
        match quantised.lm_head().unwrap().weight() {
            QMatMul::QTensor(weight) => assert_eq!(weight.dtype(), kind),
            _ => assert_eq!(kind, GgmlDType::F32),
        }
        let loss = |model: &Decoder| {
            let loss = model.loss(&ids(), None, &ids()).unwrap();
            loss.to_scalar::<f32>().unwrap()
        };
        let (loss, expected) = (loss(&quantised), loss(&full));
        assert!(
            (loss - expected).abs() < 1e-4,
            "{kind:?}: {loss} {expected}"
        );
    }
}

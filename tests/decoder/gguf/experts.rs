//! Mixtures of experts in GGUF files.

use super::super::folder;
use super::support::{Pair, pair};
use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use lora::models::Options;
use lora::models::decoder::{Decoder, from_gguf};
use lora::peft::{AdapterDir, merge_checkpoint, merge_gguf};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::assert_close;

const CASES: [&str; 3] = ["mixtral", "mixtral_one", "qwen3_moe"];

/// Enough tokens for each expert to see many rows: few are multiplied by candle's kernels, which round
/// the inputs.
fn ids() -> Tensor {
    let ids: Vec<i64> = (0..640).map(|i| (i * 7 + i * i) % 56).collect();
    Tensor::from_vec(ids, (32, 20), &Device::Cpu).unwrap()
}

/// PEFT's, of all experts in one; or ours, of single experts.
fn adapter(case: &str, pair: &Pair) -> AdapterDir {
    if case == "mixtral" {
        let adapter = folder("peft").join("mixtral_joined").join("adapter");
        let adapter = AdapterDir::new(adapter);
        return adapter.rename("model.layers.*.mlp", "model.layers.*.block_sparse_moe");
    }
    let targets = [
        "q_proj",
        "mlp.gate",
        "experts.1.up_proj",
        "experts.3.down_proj",
    ];
    let config = LoraConfig::new(2).target_modules(targets);
    let model = pair.full().to_lora(&config).unwrap();
    lora_tests::fill_adapters(&model);
    let dir = pair.root.path().join("adapter");
    model.save_adapter(&dir).unwrap();
    AdapterDir::new(dir)
}

#[test]
fn compute_what_their_dequantised_weights_do() {
    for case in CASES {
        for kind in [GgmlDType::F32, GgmlDType::Q8_0] {
            let pair = pair(case, kind);
            let (quantised, full) = (pair.quantised(), pair.full());
            assert_eq!(quantised.config().experts, full.config().experts, "{case}");
            let expected = full.forward(&ids(), None).unwrap();
            let logits = quantised.forward(&ids(), None).unwrap();
            assert_close(&format!("{case}, {kind:?}"), &logits, &expected, 1e-4);
        }
    }
}

/// Each expert keeps its blocks, under the paths that it has in a checkpoint.
#[test]
fn hold_blocks_and_take_adapters_by_path() {
    let model = pair("mixtral", GgmlDType::Q8_0).quantised();
    let config = LoraConfig::new(2).target_modules(["experts.1.w3", "gate"]);
    let model = model.to_lora(&config).unwrap();
    let summary = model.summary();
    // Of two layers: one expert's w3, 32 to 24, and the router, 32 to 4.
    assert_eq!(summary.trainable, 2 * 2 * ((32 + 24) + (32 + 4)));
}

/// Adapters of single experts, and PEFT's of all experts in one.
#[test]
fn adapters_fit() {
    for case in ["mixtral", "qwen3_moe"] {
        let pair = pair(case, GgmlDType::Q8_0);
        let run = |model: Decoder| {
            let model = model.with_adapter(adapter(case, &pair)).unwrap();
            model.forward(&ids(), None).unwrap()
        };
        assert_close(case, &run(pair.quantised()), &run(pair.full()), 1e-4);
    }
}

/// A merged file, and a merged directory, compute what the adapted model does.
#[test]
fn are_merged_into_files_and_directories() {
    for case in ["mixtral", "qwen3_moe"] {
        let pair = pair(case, GgmlDType::F32);
        let adapted = pair.quantised().with_adapter(adapter(case, &pair)).unwrap();
        let expected = adapted.forward(&ids(), None).unwrap();
        let out = pair.root.path().join("merged.gguf");
        let report = merge_gguf(pair.gguf(), adapter(case, &pair), &out).unwrap();
        let names = || report.layers.iter().map(|(name, _)| name.as_str());
        match case {
            "mixtral" => assert!(names().any(|name| name == "blk.1.ffn_down_exps.weight[3]")),
            _ => assert!(names().any(|name| name == "blk.1.ffn_gate_inp.weight")),
        }
        let merged = from_gguf(&out, &Options::new()).unwrap().model;
        let merged = merged.forward(&ids(), None).unwrap();
        assert_close(case, &merged, &expected, 1e-5);

        let out = pair.root.path().join("merged");
        merge_checkpoint(pair.gguf(), adapter(case, &pair), &out).unwrap();
        let merged = lora::models::auto(&out, &Options::new()).unwrap();
        let merged = merged.into_decoder().unwrap().model;
        let merged = merged.forward(&ids(), None).unwrap();
        assert_close(case, &merged, &expected, 1e-5);
    }
}

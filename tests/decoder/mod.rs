//! The decoders of `lora::models` against transformers and PEFT.

mod cache;
mod config;
mod dropout;
mod files;
mod generate;
mod gradients;
mod logits;
mod loss;
mod packed;
mod peft;

use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};
use lora::models::decoder::Decoder;
use lora::models::{self, Created, Options};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The folders that `make.py` writes.
const CASES: [&str; 30] = [
    "llama_linear",
    "llama_llama3",
    "llama_dynamic",
    "llama_yarn",
    "llama_yarn_mscale",
    "llama_longrope",
    "smollm2",
    "mistral_window",
    "mistral_full",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "qwen3_bias",
    "smollm3",
    "smollm3_window",
    "gemma",
    "gemma2",
    "gemma2_plain",
    "gemma3",
    "gemma3_scaled",
    "phi3_partial",
    "phi3_longrope",
    "olmo2",
    "olmo2_bias",
    "granite",
    "granite_bias",
    "mixtral",
    "mixtral_one",
    "qwen3_moe",
    "qwen3_moe_sums",
];

fn folder(case: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/decoder");
    fixtures.join(case)
}

fn read(case: &str, dtype: DType) -> Created<Decoder> {
    let auto = models::auto(folder(case), &Options::new().dtype(dtype));
    let auto = auto.unwrap_or_else(|error| panic!("{case}: {error}"));
    auto.into_decoder().unwrap()
}

fn io(case: &str) -> HashMap<String, Tensor> {
    load(folder(case).join("io.safetensors"), &Device::Cpu).unwrap()
}

//! A decoder of SmolLM2-135M's or TinyLlama-1.1B's shape on random tokens.

use super::adapt::{self, Parts};
use super::data;
use super::measure::Bench;
use super::options::{Args, Written};
use crate::user_llama::Llama;
use anyhow::Result;
use candle_core::Tensor;
use lora::Lora;
use lora::models::Options;
use lora::models::decoder::{Decoder, DecoderConfig};
use lora::ops::cross_entropy;

const SMOLLM2: &str = r#"{
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": true
}"#;

const TINYLLAMA: &str = r#"{
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "vocab_size": 32000, "max_position_embeddings": 2048, "rope_theta": 10000,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": false
}"#;

/// The shape of a model, by its name.
pub(super) fn shape(name: &str) -> Option<&'static str> {
    match name {
        "smollm2" => Some(SMOLLM2),
        "tinyllama" => Some(TINYLLAMA),
        _ => None,
    }
}

pub(super) fn run(args: &Args, shape: &str) -> Result<()> {
    let config: DecoderConfig = serde_json::from_str(shape)?;
    let (ids, next) = data::text(args, config.vocab_size)?;
    match args.written {
        Written::Library => library(args, &config, ids)?.run(args),
        Written::User => user(args, &config, ids, next)?.run(args),
    }
}

fn library(args: &Args, config: &DecoderConfig, ids: Tensor) -> Result<Bench<Decoder>> {
    let options = match args.quantize {
        // Each matrix as soon as it is made: the whole model may not fit into memory before.
        Some(dtype) => Options::new().quantize(dtype),
        None => Options::new(),
    };
    let (model, _) = adapt::model::<Decoder>(args, config, &options, parts)?;
    let output = {
        let ids = ids.clone();
        move |model: &Lora<Decoder>| Ok(model.forward(&ids, None)?)
    };
    Ok(Bench {
        model,
        loss: Box::new(move |model| Ok(model.loss(&ids, None, &ids)?)),
        output: Box::new(output),
    })
}

fn user(args: &Args, config: &DecoderConfig, ids: Tensor, next: Tensor) -> Result<Bench<Llama>> {
    let (model, _) = adapt::model::<Llama>(args, config, &Options::new(), parts)?;
    let output = {
        let ids = ids.clone();
        move |model: &Lora<Llama>| Ok(model.forward(&ids)?)
    };
    Ok(Bench {
        model,
        loss: Box::new(move |model| Ok(cross_entropy(&model.forward(&ids)?, &next)?)),
        output: Box::new(output),
    })
}

fn parts(_: &DecoderConfig) -> Parts {
    Parts {
        blocks: Some(r"model\.layers\.\d+"),
        mlps: None,
        all: vec!["model", "lm_head"],
    }
}

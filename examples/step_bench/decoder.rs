//! A decoder of SmolLM2-135M's shape on random tokens.

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

pub(super) fn run(args: &Args) -> Result<()> {
    let config: DecoderConfig = serde_json::from_str(SMOLLM2)?;
    let (ids, next) = data::text(args, config.vocab_size)?;
    match args.written {
        Written::Library => library(args, &config, ids)?.run(args),
        Written::User => user(args, &config, ids, next)?.run(args),
    }
}

fn library(args: &Args, config: &DecoderConfig, ids: Tensor) -> Result<Bench<Decoder>> {
    let (model, _) = adapt::model::<Decoder>(args, config, &Options::new(), parts)?;
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

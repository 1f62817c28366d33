//! A language model on random tokens.

use super::{Args, Bench, Choice, Mode, Recompute, Written};
use crate::user_llama::Llama;
use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use lora::models::decoder::{Decoder, DecoderConfig};
use lora::models::{self, Options, Weights};
use lora::ops::cross_entropy;
use lora::{Lora, LoraModel, LoraModule};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// A model by its configuration, with random weights.
pub(super) struct Shape {
    pub(super) name: &'static str,
    config: &'static str,
}

pub(super) const SHAPES: &[Shape] = &[Shape {
    name: "smollm2",
    config: r#"{
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true
    }"#,
}];

pub(super) fn run(args: &Args, shape: &Shape) -> Result<()> {
    let config: DecoderConfig = serde_json::from_str(shape.config)?;
    let tokens = tokens(args, config.vocab_size)?;
    match args.written {
        Written::Library => library(args, &config, tokens)?.run(args, "library"),
        Written::User => user(args, &config, tokens)?.run(args, "user"),
    }
}

fn library(args: &Args, config: &DecoderConfig, tokens: Tokens) -> Result<Bench<Decoder>> {
    let created = models::build::<Decoder>(config, Weights::Random(args.seed), &Options::new())?;
    let ids = tokens.ids;
    let output = {
        let ids = ids.clone();
        move |model: &Lora<Decoder>| Ok(model.forward(&ids, None)?)
    };
    Ok(Bench {
        model: convert(created.model, args)?,
        loss: Box::new(move |model| Ok(model.loss(&ids, None, &ids)?)),
        output: Box::new(output),
    })
}

fn user(args: &Args, config: &DecoderConfig, tokens: Tokens) -> Result<Bench<Llama>> {
    let base = models::build::<Llama>(config, Weights::Random(args.seed), &Options::new())?;
    let Tokens { ids, next } = tokens;
    let output = {
        let ids = ids.clone();
        move |model: &Lora<Llama>| Ok(model.forward(&ids)?)
    };
    Ok(Bench {
        model: convert(base.model, args)?,
        loss: Box::new(move |model| Ok(cross_entropy(&model.forward(&ids)?, &next)?)),
        output: Box::new(output),
    })
}

fn convert<M: LoraModel>(base: M, args: &Args) -> Result<Lora<M>> {
    let config = match args.targets {
        Choice::Qv => args.config().target_modules(["q_proj", "v_proj"]),
        Choice::AllLinear => args.config().target_modules("all-linear"),
    };
    let config = match args.recompute {
        Recompute::None => config,
        Recompute::Mlp => bail!("--recompute mlp is for models of images"),
        Recompute::Block => config.recompute(r"model\.layers\.\d+"),
    };
    let model = match args.mode {
        Mode::Lora => base.to_lora(&config)?,
        Mode::Full => base.to_lora(&args.config().modules_to_save(["model", "lm_head"]))?,
        Mode::Base => base.to_frozen()?,
    };
    Ok(model.to_dtype(args.dtype.dtype())?)
}

/// Random tokens, and for each the next one; −100 after the last.
struct Tokens {
    ids: Tensor,
    next: Tensor,
}

fn tokens(args: &Args, vocabulary: usize) -> Result<Tokens> {
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let mut rows = Vec::with_capacity(args.batch);
    let mut next = Vec::with_capacity(args.batch);
    for _ in 0..args.batch {
        let row = (0..args.seq).map(|_| rng.random_range(0..vocabulary as u32));
        let row: Vec<u32> = row.collect();
        let shifted = row[1..].iter().map(|&id| i64::from(id));
        next.push(shifted.chain([-100]).collect::<Vec<_>>());
        rows.push(row);
    }
    Ok(Tokens {
        ids: Tensor::new(rows, &Device::Cpu)?,
        next: Tensor::new(next, &Device::Cpu)?,
    })
}

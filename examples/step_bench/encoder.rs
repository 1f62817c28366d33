//! A BERT of all-MiniLM-L6-v2's shape that tells two classes apart, on random texts.

use super::adapt::{self, Parts};
use super::data;
use super::measure::Bench;
use super::options::{Args, Written};
use crate::user_bert::Bert;
use anyhow::{Context, Result};
use candle_core::Tensor;
use lora::Lora;
use lora::models::encoder::{Encoder, EncoderConfig, Inputs};
use lora::models::{Architecture, Options, Task};

pub(super) fn run(args: &Args) -> Result<()> {
    let config = config(args)?;
    match args.written {
        Written::Library => bench::<Encoder>(args, &config, |model: &Lora<Encoder>, ids, train| {
            model.forward(&Inputs::new(ids), train)
        }),
        Written::User => bench::<Bert>(args, &config, |model: &Lora<Bert>, ids, train| {
            model.forward(ids, None, train)
        }),
    }
}

fn bench<M: Architecture<Config = EncoderConfig>>(
    args: &Args,
    config: &EncoderConfig,
    logits: impl Fn(&Lora<M>, &Tensor, bool) -> candle_core::Result<Tensor> + Clone + 'static,
) -> Result<()> {
    // The head is fresh: the checkpoint has none.
    let options = Options::new()
        .task(Task::SequenceClassification)
        .num_classes(2);
    let parts = |_: &EncoderConfig| Parts {
        blocks: Some(r"bert\.encoder\.layer\.\d+"),
        mlps: None,
        all: vec!["bert", "classifier"],
    };
    let (model, config) = adapt::model::<M>(args, config, &options, parts)?;
    let (ids, labels) = data::texts(args, config.vocab_size, config.labels.len())?;
    let seq = args.seq;
    let logits = move |model: &Lora<M>, train| {
        let logits = logits(model, &ids, train);
        logits.with_context(|| format!("--seq {seq} does not suit the model"))
    };
    Bench::<M>::of_classes(model, labels, logits).run(args)
}

fn config(args: &Args) -> Result<EncoderConfig> {
    let config = serde_json::json!({
        "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536,
        "num_hidden_layers": 6, "num_attention_heads": 12, "vocab_size": 30522,
        "max_position_embeddings": 512, "type_vocab_size": 2,
        "hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout
    });
    Ok(serde_json::from_value(config)?)
}

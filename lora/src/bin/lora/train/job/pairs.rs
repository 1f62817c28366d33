//! An encoder learns which texts belong together.

use super::super::kind::Kind;
use super::super::settings::Settings;
use super::classes::cut;
use super::examples;
use super::{Prepared, model_fact};
use crate::model::Source;
use anyhow::{Context, Result};
use lora::data::Pair;
use lora::models::encoder::Encoder;
use lora::models::{self, Options, parameter_shapes};
use lora::peft::TaskType;
use lora::train::{PairLoss, TextPairs};

/// The layer behind the last hidden state, which no embedding is made of.
const POOLER: &str = "pooler.dense";

pub fn prepare(settings: &Settings) -> Result<Prepared<TextPairs>> {
    let source = Source::find(&settings.model)?;
    let pairs: (Vec<Pair>, _) = examples::read(settings, Kind::Pairs)?;
    let examples = examples::divide(settings, Kind::Pairs, pairs)?;
    examples.check(settings)?;
    let tokenizer = source.tokenizer()?;
    let base = source.open(&Options::new())?.into_encoder();
    let base = base.with_context(|| {
        format!(
            "{} holds pairs, of which an encoder learns embeddings; --model {}",
            settings.data.display(),
            source.name
        )
    })?;
    let config = &base.config;
    let mut lora = settings.lora()?;
    let mut parameters = parameter_shapes::<Encoder>(config)?.into_iter();
    let has_pooler = parameters.any(|(name, _)| name.contains(POOLER));
    if has_pooler && lora.target_modules.is_some() && lora.exclude_modules.is_none() {
        lora = lora.exclude_modules([POOLER]);
    }
    models::check_rank::<Encoder>(config, &lora)?;
    let loss = settings.loss.unwrap_or(PairLoss::of(&examples.training));
    let facts = vec![
        model_fact(
            &source,
            &config.model_type,
            config.num_hidden_layers,
            config.hidden_size,
        ),
        examples.fact(settings) + &format!(", loss {loss}"),
    ];
    let tokenizer = cut(tokenizer, settings.max_length, config)?;
    let set = |pairs: Vec<Pair>| {
        let set = TextPairs::new(&tokenizer, pairs, loss);
        set.with_context(|| format!("cannot use {}", settings.data.display()))
    };
    let held_out = examples.held_out;
    Ok(Prepared {
        training: set(examples.training)?,
        held_out: (!held_out.is_empty()).then(|| set(held_out)).transpose()?,
        base: base.model,
        lora,
        classes: None,
        task: (TaskType::FeatureExtraction, "sentence-similarity"),
        facts,
    })
}

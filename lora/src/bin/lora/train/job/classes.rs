//! An encoder learns to tell texts apart.

use super::super::kind::Kind;
use super::super::settings::Settings;
use super::examples::{self, Examples};
use super::{Prepared, model_fact};
use crate::model::Source;
use anyhow::{Context, Result};
use lora::data::{Classes, Labelled};
use lora::models::encoder::{Encoder, EncoderConfig};
use lora::models::{self, Architecture, Created, Options, Task};
use lora::peft::TaskType;
use lora::text::Tokenizer;
use lora::train::TextClasses;
use std::collections::HashSet;
use std::path::Path;

pub fn prepare(settings: &Settings) -> Result<Prepared<TextClasses>> {
    let source = Source::find(&settings.model)?;
    let texts: (Vec<Labelled>, _) = examples::read(settings, Kind::Classes)?;
    let classes = Classes::of(texts.0.iter().map(|text| &text.label))
        .with_context(|| format!("cannot use {}", settings.data.display()))?;
    let (examples, note) = distinct(examples::divide(settings, Kind::Classes, texts)?);
    examples.check(settings)?;
    let tokenizer = source.tokenizer()?;
    let (base, classes) = base(&source, classes, settings)?;
    let mut lora = settings.lora()?;
    for module in in_full(&base) {
        if !lora.modules_to_save.iter().any(|known| known == module) {
            lora.modules_to_save.push(module.into());
        }
    }
    models::check_rank::<Encoder>(&base.config, &lora)?;
    let config = &base.config;
    let model = model_fact(
        &source,
        &config.model_type,
        config.num_hidden_layers,
        config.hidden_size,
    );
    let head = if is_fresh(&base) {
        ", with a fresh head"
    } else {
        ""
    };
    let mut facts = vec![
        format!("{model}{head}"),
        examples.fact(settings) + &format!(", of {} classes", classes.names().len()),
    ];
    facts.extend(note);
    let tokenizer = cut(tokenizer, settings.max_length, config)?;
    let valid = settings.valid.as_ref().unwrap_or(&settings.data);
    let set = |texts: &[Labelled], file: &Path| {
        let set = TextClasses::new(&tokenizer, texts, &classes, config.type_vocab_size > 1);
        set.with_context(|| format!("cannot use {}", file.display()))
    };
    let held_out = &examples.held_out;
    Ok(Prepared {
        training: set(&examples.training, &settings.data)?,
        held_out: (!held_out.is_empty())
            .then(|| set(held_out, valid))
            .transpose()?,
        base: base.model,
        lora,
        classes: Some(classes.names().to_vec()),
        task: (TaskType::SeqCls, "text-classification"),
        facts,
    })
}

/// Leaves out empty texts and those that are there already, so that none is learned and held out.
fn distinct(mut examples: Examples<Labelled>) -> (Examples<Labelled>, Option<String>) {
    let (mut seen, mut left_out) = (HashSet::new(), 0);
    for texts in [&mut examples.training, &mut examples.held_out] {
        let all = texts.len();
        texts.retain(|text| {
            let is_empty = text.text.trim().is_empty();
            !is_empty && seen.insert((text.text.clone(), text.text_pair.clone()))
        });
        left_out += all - texts.len();
    }
    let note = format!("        {left_out} texts are empty or the same as another: left out");
    (examples, (left_out > 0).then_some(note))
}

/// The base model with a head for the classes: its own, if it tells just these apart, else a fresh one. The
/// classes get the head's numbers.
fn base(
    source: &Source,
    classes: Classes,
    settings: &Settings,
) -> Result<(Created<Encoder>, Classes)> {
    let options = Options::new()
        .task(Task::SequenceClassification)
        .num_classes(classes.names().len())
        .seed(settings.seed);
    let load = |options: &Options| {
        source.open(options)?.into_encoder().with_context(|| {
            format!(
                "{} holds texts with classes, which an encoder tells apart (a language model learns texts \
                 without `label`); --model {}",
                settings.data.display(),
                source.name
            )
        })
    };
    let created = load(&options)?;
    if is_fresh(&created) {
        return Ok((created, classes));
    }
    if let Some(own) = classes.numbered_as(&created.config.labels) {
        return Ok((created, own));
    }
    let heads = Encoder::heads(&created.config, &options).into_iter();
    let created = load(&options.clone().fresh(heads.filter(|head| !is_pooler(head))))?;
    Ok((created, classes))
}

fn is_fresh(base: &Created<Encoder>) -> bool {
    base.fresh.iter().any(|name| !is_pooler(name))
}

/// Whether a name is one of the layer between the texts' vectors and the head.
fn is_pooler(name: &str) -> bool {
    name.split('.').any(|part| part == "pooler")
}

/// The modules that are trained in full: the head, and the pooler if the model's files have none.
fn in_full(base: &Created<Encoder>) -> Vec<&'static str> {
    let options = Options::new().num_classes(base.config.labels.len());
    let heads = Encoder::heads(&base.config, &options).into_iter();
    let is_fresh = |head: &str| base.fresh.iter().any(|name| name.starts_with(head));
    heads
        .filter(|head| !is_pooler(head) || is_fresh(head))
        .collect()
}

/// The tokenizer with texts of at most this many tokens, and no more than the model has positions for.
pub(super) fn cut(tokenizer: Tokenizer, most: usize, config: &EncoderConfig) -> Result<Tokenizer> {
    let longest = tokenizer.longest().unwrap_or(usize::MAX);
    let most = most.min(longest).min(config.max_position_embeddings);
    tokenizer
        .truncate_to(most)
        .context("--max-length is too small")
}

//! Classes of texts: an encoder with a head, adapted with LoRA.

mod data;
mod evaluation;
mod folders;
mod options;
mod report;
mod tables;

pub use data::{Texts, read};
pub use evaluation::Evaluation;
pub use options::Options;
pub use report::{Report, Scores};
pub use tables::{confusion, examples};

use crate::agreement::Agreement;
use crate::output::{Output, write_classes};
use crate::program::say;
use crate::rank;
use crate::steps::seen;
use crate::text::{Source, Tuned};
use anyhow::{Context, Result};
use clap::Parser;
use lora::models::encoder::{Encoder, LoraEncoder};
use lora::models::{self, Architecture, Created, Task};
use lora::peft::{SaveOptions, TaskType};
use lora::text::Tokenizer;
use lora::train::TextClasses;
use lora::{LoraModel, LoraModule};
use std::process::ExitCode;

/// The name of the list of results.
const PROGRAM: &str = "finetune_text";

/// The files that the job writes.
pub const FILES: [&str; 3] = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/classes.json",
];

/// Texts that the report shows.
const EXAMPLES: usize = 8;

/// The program.
pub fn main() -> ExitCode {
    lora::memory::keep();
    let options = Options::parse();
    options.tuning.start(|| run(&options).map(drop))
}

/// Does the whole job and prints what it does.
///
/// # Errors
/// Says what went wrong. Output of an earlier run is then as it was.
pub fn run(options: &Options) -> Result<Report> {
    let (source, data) = (options.source()?, options.data()?);
    // Before the work: whether the results have a place. They are made after it.
    drop(Output::new(&options.output, PROGRAM, &FILES)?);
    let tuning = &options.tuning;
    let mut texts = read(&data)?;
    let base = base(&source, &mut texts, tuning.seed)?;
    let (classes, notes) = (texts.classes.clone(), texts.notes.clone());
    let (training, held_out) = texts.split(tuning.held_out, options.limit, tuning.seed)?;
    let fresh = base.fresh.iter().any(|name| !is_pooler(name));
    say(format_args!(
        "model   {}, {} layers of width {}{}",
        source.name,
        base.config.num_hidden_layers,
        base.config.hidden_size,
        if fresh { ", with a fresh head" } else { "" }
    ))?;
    say(format_args!(
        "texts   {}: {} to train on, {} held out, of {} classes",
        data.display(),
        training.len(),
        held_out.len(),
        classes.names().len()
    ))?;
    for note in notes {
        say(format_args!("        {note}"))?;
    }
    let tokenizer = cut(source.tokenizer()?, tuning.max_length, &base)?;
    let has_types = base.config.type_vocab_size > 1;
    let [train_set, held_set] = [&training, &held_out]
        .map(|items| TextClasses::new(&tokenizer, items, &classes, has_types));
    let (train_set, held_set) = (train_set?, held_set?);

    let config = tuning.config(in_full(&base));
    rank::check::<Encoder>(&base.config, &config)?;
    let mut model = base.model.to_lora(&config)?;
    model.eval();
    let summary = model.summary();
    tuning.tell(&summary)?;
    let evaluate = |model: &LoraEncoder| Evaluation::of(model, &held_set, 2 * tuning.batch);
    let before = evaluate(&model)?;
    let trained = tuning.fit(&mut model, &train_set, |batch| seen(&batch.mask))?;
    let after = evaluate(&model)?;

    let output = Output::new(&options.output, PROGRAM, &FILES)?;
    let adapter = output.draft("adapter");
    let save = SaveOptions::new()
        .task_type(TaskType::SeqCls)
        .base_model(&source.name);
    model.save_adapter_with(&adapter, &save)?;
    write_classes(&adapter, classes.names())?;
    let mut again = base.model.to_lora(&config)?;
    again.load_adapter(&adapter)?;
    again.eval();
    let again = evaluate(&again)?;

    let labels = held_set.labels();
    let report = Report {
        before: Scores::of(&before.predictions, labels)?,
        after: Scores::of(&after.predictions, labels)?,
        fresh,
        held_out: held_out.len(),
        confusion: confusion(&after.predictions, labels, classes.names())?,
        examples: examples(
            &held_out,
            labels,
            &before,
            &after,
            classes.names(),
            EXAMPLES,
        ),
        tuned: Tuned::of(&summary, trained, &adapter)?,
        reloaded: Agreement::of(&after.logits, &again.logits)?,
        saved: output.publish()?,
    };
    say(format_args!("\n{report}"))?;
    Ok(report)
}

/// The base model with a head for the texts' classes: its own, if it tells just these apart, else a fresh
/// one. The texts get the head's numbers.
fn base(source: &Source, texts: &mut Texts, seed: u64) -> Result<Created<Encoder>> {
    let cannot = || format!("cannot use --model {}", source.name);
    let options = models::Options::new()
        .task(Task::SequenceClassification)
        .num_classes(texts.classes.names().len())
        .seed(seed);
    let load = |options: &models::Options| -> Result<Created<Encoder>> {
        let model = models::auto(&source.path, options).with_context(cannot)?;
        model.into_encoder().with_context(cannot)
    };
    let created = load(&options)?;
    let is_fresh = created.fresh.iter().any(|name| !is_pooler(name));
    if is_fresh {
        return Ok(created);
    }
    if let Some(classes) = texts.classes.numbered_as(&created.config.labels) {
        texts.classes = classes;
        return Ok(created);
    }
    let heads = Encoder::heads(&created.config, &options).into_iter();
    load(&options.clone().fresh(heads.filter(|head| !is_pooler(head))))
}

/// Whether a name is one of the layer between the texts' vectors and the head.
fn is_pooler(name: &str) -> bool {
    name.split('.').any(|part| part == "pooler")
}

/// The modules that are trained in full: the head, and the pooler if the model's files have none.
fn in_full(base: &Created<Encoder>) -> Vec<&'static str> {
    let options = models::Options::new().num_classes(base.config.labels.len());
    let heads = Encoder::heads(&base.config, &options).into_iter();
    let is_fresh = |head: &str| base.fresh.iter().any(|name| name.starts_with(head));
    heads
        .filter(|head| !is_pooler(head) || is_fresh(head))
        .collect()
}

/// The tokenizer with texts of at most this many tokens, and no more than the model has positions for.
fn cut(tokenizer: Tokenizer, most: usize, base: &Created<Encoder>) -> Result<Tokenizer> {
    let longest = tokenizer.longest().unwrap_or(usize::MAX);
    let most = most.min(longest).min(base.config.longest());
    tokenizer
        .truncate_to(most)
        .context("--max-length is too small")
}

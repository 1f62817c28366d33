//! Tuning an encoder of sentences to a search.

mod lessons;
mod loss;
mod options;
mod pairs;
mod report;
mod search;
mod shown;
mod tokens;

pub use loss::Loss;
pub use options::Options;
pub use report::{Quality, Report, ScoreQuality, SearchQuality};

use crate::output::Output;
use crate::program::say;
use crate::rank;
use crate::results::thousands;
use crate::steps::{Plan, Trained, fit};
use crate::text::{Source, Tuned};
use anyhow::{Context, Result, bail};
use clap::Parser;
use lessons::Lessons;
use lora::data::BatchOptions;
use lora::models::encoder::{Encoder, EncoderConfig};
use lora::models::{self, Created, parameter_shapes};
use lora::peft::{SaveOptions, TaskType};
use lora::train::Unit;
use lora::{Lora, LoraConfig, LoraModel, LoraModule};
use pairs::Pairs;
use search::Search;
use shown::Shown;
use std::path::Path;
use std::process::ExitCode;
use tokens::Reader;

/// The name of the list of results.
const PROGRAM: &str = "finetune_embeddings";

/// The files that the job writes.
pub const FILES: [&str; 2] = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
];

/// BERT's pooler. An embedding is made of the hidden states, which do not pass there.
const POOLER: &str = "pooler.dense";

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
    let tuning = &options.tuning;
    // Before the work: whether the results have a place. They are made after it.
    drop(Output::new(&options.output, PROGRAM, &FILES)?);
    let pairs = Pairs::read(&data, tuning.held_out, tuning.seed)?;
    options
        .loss
        .check(&pairs.training)
        .with_context(|| format!("the pairs of {}", data.display()))?;
    let Created {
        model: base,
        config: encoder,
        ..
    } = encoder(&source)?;
    let reader = Reader::new(&source, &encoder, tuning.max_length)?;
    let batches = BatchOptions::new(tuning.batch).seed(tuning.seed);
    let mut lessons = Lessons::new(&reader, &pairs.training, options.loss, &batches)?;
    let steps = tuning.epochs * lessons.steps();
    if steps == 0 {
        bail!(
            "no batch of {} of the {} pairs teaches anything by --loss {}: a step needs two pairs with \
             different texts, or a `negative`",
            tuning.batch,
            pairs.training.len(),
            options.loss.name()
        );
    }
    introduce(&source, &encoder, &data, &pairs, &lessons, reader.most)?;
    let config = config(options, &encoder)?;
    rank::check::<Encoder>(&encoder, &config)?;

    let search = Search::new(&reader, &pairs.held_out)?;
    let before = search.run(&reader, &base.to_frozen()?)?;
    let mut model = base.to_lora(&config)?;
    let summary = model.summary();
    match tuning.summary {
        true => say(format_args!("\n{summary}\n"))?,
        false => say(format_args!(
            "LoRA    rank {}: {}\n",
            tuning.lora.rank,
            summary.totals()
        ))?,
    }
    let plan = Plan {
        epochs: tuning.epochs,
        steps,
        lr: tuning.lr,
        weight_decay: 0.0,
        clip: Some(1.0),
        unit: Unit::Examples,
        seed: tuning.seed,
    };
    let trained = train(&mut model, &plan, &mut lessons, options)?;
    let after = search.run(&reader, &model)?;

    let output = Output::new(&options.output, PROGRAM, &FILES)?;
    let adapter = output.draft("adapter");
    let save = SaveOptions::new()
        .base_model(&source.name)
        .task_type(TaskType::FeatureExtraction);
    model.save_adapter_with(&adapter, &save)?;
    let again = search.run(&reader, &reload(&base, &config, &adapter)?)?;
    let differences = (&after.embeddings - &again.embeddings)?.abs()?;
    say(format_args!(
        "\n{}",
        Shown {
            search: &search,
            before: &before,
            after: &after,
            most: options.show,
        }
    ))?;
    let report = Report {
        before: before.quality,
        after: after.quality,
        tuned: Tuned::of(&summary, trained, &adapter)?,
        reloaded: differences.flatten_all()?.max(0)?.to_scalar()?,
        saved: output.publish()?,
    };
    say(report.to_string().trim_end())?;
    Ok(report)
}

/// The encoder that the directory holds.
fn encoder(source: &Source) -> Result<Created<Encoder>> {
    let read = || models::auto(&source.path, &models::Options::new())?.into_encoder();
    read().with_context(|| format!("cannot use --model {}", source.name))
}

/// The LoRA configuration. Where the options name layers, the pooler is none of them.
fn config(options: &Options, encoder: &EncoderConfig) -> Result<LoraConfig> {
    let config = options.tuning.config([]);
    let mut parameters = parameter_shapes::<Encoder>(encoder)?.into_iter();
    let has_pooler = parameters.any(|(name, _)| name.contains(POOLER));
    Ok(match config.target_modules.is_some() && has_pooler {
        true => config.exclude_modules([POOLER]),
        false => config,
    })
}

/// Prints what the job starts from.
fn introduce(
    source: &Source,
    encoder: &EncoderConfig,
    data: &Path,
    pairs: &Pairs,
    lessons: &Lessons<'_>,
    most: usize,
) -> Result<()> {
    say(format_args!(
        "model   {}: {}, embeddings of {} numbers",
        source.name, encoder.model_type, encoder.hidden_size
    ))?;
    say(format_args!(
        "pairs   {}: {} to train on, {} held out",
        data.display(),
        thousands(pairs.training.len()),
        thousands(pairs.held_out.len())
    ))?;
    for note in pairs.notes.iter().chain(&lessons.notes(most)) {
        say(format_args!("        {note}"))?;
    }
    Ok(())
}

fn train(
    model: &mut Lora<Encoder>,
    plan: &Plan,
    lessons: &mut Lessons<'_>,
    options: &Options,
) -> Result<Trained> {
    let loss = |model: &Lora<Encoder>, lesson: &lessons::Lesson| {
        Ok(options.loss.of(&lesson.embed(model)?)?)
    };
    fit(model, plan, || lessons.next(), loss)
}

/// The base model with the adapter as it was saved.
fn reload(base: &Encoder, config: &LoraConfig, adapter: &Path) -> Result<Lora<Encoder>> {
    let mut model = base.to_lora(config)?;
    model.load_adapter(adapter)?;
    model.eval();
    Ok(model)
}

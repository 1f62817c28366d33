//! Tuning an encoder of sentences to a search.

mod options;
mod pairs;
mod report;
mod search;
mod shown;
mod tokens;

pub use options::Options;
pub use report::{Quality, Report, ScoreQuality, SearchQuality};

use crate::output::Output;
use crate::program::say;
use crate::rank;
use crate::results::thousands;
use crate::steps::seen;
use crate::text::{Source, Tuned};
use anyhow::{Context, Result, bail};
use clap::Parser;
use lora::data::{BatchOptions, Pair};
use lora::models::encoder::{Encoder, EncoderConfig};
use lora::models::{self, Created, parameter_shapes};
use lora::peft::{SaveOptions, TaskType};
use lora::train::{Dataset, PairLoss, Source as _, TextPairs};
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
    let Created {
        model: base,
        config: encoder,
        ..
    } = encoder(&source)?;
    let reader = Reader::new(&source, &encoder, tuning.max_length)?;
    let training = TextPairs::new(&reader.tokenizer, pairs.training.clone(), options.loss)
        .with_context(|| format!("the pairs of {}", data.display()))?;
    check(&training, options)?;
    introduce(&source, &encoder, &data, &pairs)?;
    for note in notes(&reader, &pairs.training, &training, options.loss)? {
        say(format_args!("        {note}"))?;
    }
    let config = config(options, &encoder)?;
    rank::check::<Encoder>(&encoder, &config)?;

    let search = Search::new(&reader, &pairs.held_out)?;
    let before = search.run(&reader, &base.to_frozen()?)?;
    let mut model = base.to_lora(&config)?;
    let summary = model.summary();
    tuning.tell(&summary)?;
    let trained = tuning.fit(&mut model, &training, |batch| {
        let negatives = batch.negatives.as_ref();
        let texts = [&batch.anchors, &batch.positives]
            .into_iter()
            .chain(negatives);
        texts.map(|texts| seen(&texts.mask)).sum()
    })?;
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

/// Refuses pairs of which no batch teaches anything.
fn check(training: &TextPairs, options: &Options) -> Result<()> {
    let batches = BatchOptions::new(options.tuning.batch).seed(options.tuning.seed);
    if training.batches(&batches)?.batches_per_epoch() == Some(0) {
        bail!(
            "no batch of {} of the {} pairs teaches anything by --loss {}: a step needs two pairs with \
             different texts, or a `negative`",
            options.tuning.batch,
            training.lengths().len(),
            options.loss
        );
    }
    Ok(())
}

/// What a user should know of the pairs to train on.
fn notes(
    reader: &Reader,
    pairs: &[Pair],
    training: &TextPairs,
    loss: PairLoss,
) -> Result<Vec<String>> {
    let texts = pairs.iter().flat_map(|pair| {
        let texts = [
            Some(&pair.anchor),
            Some(&pair.positive),
            pair.negative.as_ref(),
        ];
        texts.into_iter().flatten().map(String::as_str)
    });
    let (full, repeated) = (reader.full(&reader.read(texts)?), training.repeated());
    let mut notes = Vec::new();
    if full > 0 {
        notes.push(format!(
            "{full} texts to train on have {} tokens or more: the rest is cut",
            reader.most
        ));
    }
    if repeated > 0 && loss == PairLoss::Ranking {
        notes.push(format!(
            "{repeated} pairs to train on repeat a text of another: a batch takes each text once"
        ));
    }
    Ok(notes)
}

/// Prints what the job starts from.
fn introduce(source: &Source, encoder: &EncoderConfig, data: &Path, pairs: &Pairs) -> Result<()> {
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
    for note in &pairs.notes {
        say(format_args!("        {note}"))?;
    }
    Ok(())
}

/// The base model with the adapter as it was saved.
fn reload(base: &Encoder, config: &LoraConfig, adapter: &Path) -> Result<Lora<Encoder>> {
    let mut model = base.to_lora(config)?;
    model.load_adapter(adapter)?;
    model.eval();
    Ok(model)
}

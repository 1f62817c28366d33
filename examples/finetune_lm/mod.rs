//! A language model, adapted with LoRA to a text or to conversations.

mod data;
mod options;
mod report;

pub use data::{Data, Prompt, read};
pub use options::Options;
pub use report::Report;

use crate::agreement::Agreement;
use crate::output::Output;
use crate::program::{say, stream};
use crate::steps::{Plan, Step, Trained, fit};
use crate::text::{Source, Tuned, TuningArgs};
use crate::{interrupt, rank};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use lora::data::{Batch, BatchOptions, Batches, Pad, Sequence};
use lora::metrics::Perplexity;
use lora::models::decoder::{Decoder, LoraDecoder};
use lora::models::generate::Settings;
use lora::models::{self, Created};
use lora::peft::{SaveOptions, TaskType};
use lora::text::{Tokenizer, generate};
use lora::train::Unit;
use lora::{LoraConfig, LoraModel, LoraModule};
use std::process::ExitCode;

/// The name of the list of results.
const PROGRAM: &str = "finetune_lm";

/// The files that the job writes.
pub const FILES: [&str; 2] = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
];

/// Held-out sequences whose logits are compared once the adapter is loaded again.
const COMPARED: usize = 4;

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
    let (source, path) = (options.source()?, options.data()?);
    // Before the work: whether the results have a place. They are made after it.
    drop(Output::new(&options.output, PROGRAM, &FILES)?);
    let tuning = &options.tuning;
    let tokenizer = source.tokenizer()?;
    let length = tuning.max_length;
    let mut data = read(&path, &tokenizer, length, tuning.held_out, tuning.seed)?;
    if let Some(prompt) = &options.prompt {
        data.prompt = Prompt::new(prompt, &tokenizer)?;
    }
    let base = base(&source)?;
    say(format_args!(
        "model   {}, {} layers of width {}",
        source.name,
        base.config.layers.len(),
        base.config.hidden_size
    ))?;
    say(format_args!(
        "text    {}: {} {kind} to train on, {} {kind} held out",
        path.display(),
        data.training.len(),
        data.held_out.len(),
        kind = data.kind
    ))?;

    let config = config(tuning);
    rank::check::<Decoder>(&base.config, &config)?;
    let mut model = base.model.to_lora(&config)?;
    model.eval();
    let summary = model.summary();
    match tuning.summary {
        true => say(format_args!("\n{summary}\n"))?,
        false => say(format_args!(
            "LoRA    rank {}: {}\n",
            config.rank,
            summary.totals()
        ))?,
    }
    let pad = Pad::new(tokenizer.pad());
    let held_out = spread(&data.held_out, options.evaluate);
    let before = perplexity(&model, &held_out, pad, tuning.batch)?;
    let settings = settings(&source, &tokenizer, options)?;
    let sample_before = sample("before", &model, &tokenizer, &data.prompt, &settings)?;

    let trained = train(&mut model, &data.training, pad, tuning)?;
    let after = perplexity(&model, &held_out, pad, tuning.batch)?;
    let sample_after = sample("after", &model, &tokenizer, &data.prompt, &settings)?;

    let output = Output::new(&options.output, PROGRAM, &FILES)?;
    let adapter = output.draft("adapter");
    let save = SaveOptions::new()
        .task_type(TaskType::CausalLm)
        .base_model(&source.name);
    model.save_adapter_with(&adapter, &save)?;
    let mut again = base.model.to_lora(&config)?;
    again.load_adapter(&adapter)?;
    again.eval();
    let compared = &held_out[..held_out.len().min(COMPARED)];
    let [tuned, again] = [&model, &again].map(|model| logits(model, compared, pad));

    let report = Report {
        before: before.value(),
        after: after.value(),
        held_out: after.tokens(),
        sample_before,
        sample_after,
        tuned: Tuned::of(&summary, trained, &adapter)?,
        reloaded: Agreement::of(&tuned?, &again?)?,
        saved: output.publish()?,
    };
    say(&report)?;
    Ok(report)
}

fn base(source: &Source) -> Result<Created<Decoder>> {
    let read = || models::auto(&source.path, &models::Options::new())?.into_decoder();
    read().with_context(|| format!("cannot use --model {}", source.name))
}

/// The LoRA configuration: all linear layers, unless the options name others.
fn config(tuning: &TuningArgs) -> LoraConfig {
    let config = tuning.config([]);
    match tuning.lora.target_modules.is_empty() && tuning.lora.target_regex.is_none() {
        true => config.target_modules("all-linear"),
        false => config,
    }
}

/// So many of the sequences at most, from all over these.
fn spread(sequences: &[Sequence], most: usize) -> Vec<&Sequence> {
    let every = sequences.len().div_ceil(most).max(1);
    sequences.iter().step_by(every).collect()
}

fn perplexity(
    model: &LoraDecoder,
    sequences: &[&Sequence],
    pad: Pad,
    batch: usize,
) -> Result<Perplexity> {
    let mut perplexity = Perplexity::new();
    for rows in sequences.chunks(batch) {
        interrupt::check()?;
        let batch = pad.sequences(rows, &Device::Cpu)?;
        let loss = loss(model, &batch).context("the model does not fit the text")?;
        let loss = loss.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        perplexity.add(loss.into(), batch.learned);
    }
    Ok(perplexity)
}

fn loss(model: &LoraDecoder, batch: &Batch) -> lora::Result<Tensor> {
    Ok(model.loss(&batch.ids, Some(&batch.mask), &batch.labels)?)
}

/// The logits of all tokens, (tokens, vocabulary).
fn logits(model: &LoraDecoder, sequences: &[&Sequence], pad: Pad) -> Result<Tensor> {
    let batch = pad.sequences(sequences, &Device::Cpu)?;
    let logits = model.forward(&batch.ids, Some(&batch.mask))?;
    Ok(logits.flatten(0, 1)?.detach())
}

/// How samples are drawn: with the tokens that end a text for this model.
fn settings(source: &Source, tokenizer: &Tokenizer, options: &Options) -> Result<Settings> {
    let stop_tokens = match source.is_gguf() {
        true => tokenizer.eos().into_iter().collect(),
        false => {
            Settings::from_directory(&source.path)
                .with_context(|| format!("cannot use --model {}", source.name))?
                .stop_tokens
        }
    };
    Ok(Settings::new()
        .stop_tokens(stop_tokens)
        .max_new_tokens(options.sample)
        .temperature(options.temperature)
        .seed(options.tuning.seed))
}

/// Prints how a model goes on with a prompt, as it is made, and returns that.
fn sample(
    when: &str,
    model: &LoraDecoder,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    settings: &Settings,
) -> Result<String> {
    say(format_args!("--- a sample {when} ---"))?;
    stream(&prompt.text)?;
    let mut text = String::new();
    for pieces in generate(model, tokenizer, &[&prompt.ids], settings)? {
        interrupt::check()?;
        let piece = pieces?.swap_remove(0);
        stream(&piece)?;
        text.push_str(&piece);
    }
    say("\n")?;
    Ok(text)
}

/// Trains on the sequences, those of about the same length together.
fn train(
    model: &mut LoraDecoder,
    sequences: &[Sequence],
    pad: Pad,
    tuning: &TuningArgs,
) -> Result<Trained> {
    let options = BatchOptions::new(tuning.batch).seed(tuning.seed);
    let mut batches = Batches::new(sequences.iter().map(Sequence::len), &options)?;
    let plan = Plan {
        epochs: tuning.epochs,
        steps: tuning.epochs * batches.batches_per_epoch(),
        lr: tuning.lr,
        weight_decay: 0.0,
        clip: Some(1.0),
        unit: Unit::Tokens,
        seed: tuning.seed,
    };
    let next = || {
        let Some(indices) = batches.next_batch() else {
            return Ok(None);
        };
        let rows: Vec<&Sequence> = indices.iter().map(|&index| &sequences[index]).collect();
        let batch = pad.sequences(&rows, &Device::Cpu)?;
        Ok(Some(Step {
            weight: batch.learned,
            tokens: rows.iter().map(|row| row.len()).sum(),
            batch,
        }))
    };
    fit(model, &plan, next, loss)
}

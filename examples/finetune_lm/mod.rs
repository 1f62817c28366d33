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
use crate::steps::seen;
use crate::text::{Source, Tuned, TuningArgs};
use crate::{interrupt, rank};
use anyhow::{Context, Result};
use candle_core::Tensor;
use clap::Parser;
use lora::data::{Pad, Sequence};
use lora::models::decoder::{Decoder, LoraDecoder};
use lora::models::generate::Settings;
use lora::models::{self, Created};
use lora::peft::{SaveOptions, TaskType};
use lora::text::{Tokenizer, generate};
use lora::train::{Dataset, Language};
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
    tuning.tell(&summary)?;
    let pad = Pad::new(tokenizer.pad());
    let held_out = spread(data.held_out, options.evaluate);
    let unseen: usize = held_out.iter().map(Sequence::learned).sum();
    let [training, held_out] = [data.training, held_out].map(|rows| Language::new(rows, pad));
    let before = perplexity(&model, &held_out, tuning.batch)?;
    let settings = settings(&source, &tokenizer, options)?;
    let sample_before = sample("before", &model, &tokenizer, &data.prompt, &settings)?;

    let trained = tuning.fit(&mut model, &training, |batch| seen(&batch.mask))?;
    let after = perplexity(&model, &held_out, tuning.batch)?;
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
    let [tuned, again] = [&model, &again].map(|model| logits(model, &held_out));

    let report = Report {
        before,
        after,
        held_out: unseen,
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
fn spread(sequences: Vec<Sequence>, most: usize) -> Vec<Sequence> {
    let every = sequences.len().div_ceil(most).max(1);
    sequences.into_iter().step_by(every).collect()
}

fn perplexity(model: &LoraDecoder, data: &Language, batch: usize) -> Result<f64> {
    interrupt::check()?;
    let metrics = data.evaluate(model, batch);
    let metrics = metrics.context("the model does not fit the text")?;
    metrics
        .get("perplexity")
        .context("there is no perplexity of no tokens")
}

/// The logits of a few sequences, (tokens, vocabulary).
fn logits(model: &LoraDecoder, data: &Language) -> Result<Tensor> {
    let few: Vec<usize> = (0..data.rows().len().min(COMPARED)).collect();
    let batch = data.batch(&few)?;
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

//! The main job: adapting an image classifier to new images.

mod font;
mod job;
mod options;
mod picture;
mod report;

pub use job::Job;
pub use options::{Options, threads_for};
pub use picture::write_picture;
pub use report::Report;

use crate::checkpoint::Checkpoint;
use crate::output::{Output, size_on_disk, write_classes};
use crate::program::say;
use crate::results::peak_memory;
use crate::training::{Recipe, train};
use crate::{interrupt, program, rank, threads};
use anyhow::Result;
use clap::Parser;
use lora::models::convnext::ConvNext;
use lora::{LoraConfig, LoraModel, LoraModule};
use std::path::Path;
use std::process::ExitCode;

/// The name of the list of results.
const PROGRAM: &str = "finetune";

/// The files that the job writes.
pub const FILES: [&str; 6] = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/classes.json",
    "merged.safetensors",
    "merged.json",
    "predictions.png",
];

/// The program.
pub fn main() -> ExitCode {
    lora::memory::keep();
    let options = Options::parse();
    program::run(|| {
        let checkpoint = options.checkpoint()?;
        threads::set(options.threads, threads_for(&checkpoint))?;
        interrupt::catch()?;
        run(&options).map(drop)
    })
}

/// Does the whole job and prints what it does.
///
/// # Errors
/// Says what went wrong. Output of an earlier run is then as it was.
pub fn run(options: &Options) -> Result<Report> {
    let (checkpoint, data) = (options.checkpoint()?, options.data()?);
    // Before the work: whether the results have a place. They are made after it.
    drop(Output::new(&options.output, PROGRAM, &FILES)?);
    let job = Job::read(&checkpoint, &data, options.seed)?;
    introduce(&job, &checkpoint, &data)?;
    let config = options.config(job.in_full());
    rank::check::<ConvNext>(job.base.config(), &config)?;
    let before = match job.fresh {
        true => None,
        false => Some(job.evaluate(&job.base.to_frozen()?)?),
    };

    let mut model = job.base.to_lora(&config)?;
    let summary = model.summary();
    if options.summary {
        say(format_args!("\n{summary}\n"))?;
    } else {
        let rank = options.lora.rank;
        say(format_args!("LoRA    rank {rank}: {}\n", summary.totals()))?;
    }
    let recipe = Recipe {
        epochs: options.epochs,
        batch: options.batch,
        lr: options.lr,
        weight_decay: 0.0,
        augment: options.augment,
        seed: options.seed,
    };
    let trained = train(&mut model, &job.training, &job.input, &recipe)?;
    let after = job.evaluate(&model)?;

    let output = Output::new(&options.output, PROGRAM, &FILES)?;
    let adapter = output.draft("adapter");
    model.save_adapter(&adapter)?;
    write_classes(&adapter, &job.input.label_names)?;
    let reloaded = after.agreement(&job.evaluate(&reload(&job, &config, &adapter)?)?)?;
    model.merge()?;
    let merged = after.agreement(&job.evaluate(&model)?)?;
    model.unmerge()?;
    let weights = output.draft("merged.safetensors");
    Checkpoint::write(&weights, &model.to_base()?, &job.input)?;
    let tuned = Checkpoint::open(&weights)?.model(None, options.seed)?.model;
    let base = after.agreement(&job.evaluate(&tuned.to_frozen()?)?)?;
    let was = before.as_ref().map(|before| before.predictions.as_slice());
    let picture = output.draft("predictions.png");
    write_picture(&picture, &job.held_out, was, &after.predictions)?;

    let (adapter_bytes, checkpoint_bytes) = (size_on_disk(&adapter)?, size_on_disk(&weights)?);
    let report = Report {
        before: before.map(|before| before.accuracy),
        after: after.accuracy,
        held_out: job.held_out.len(),
        trainable: summary.trainable,
        parameters: summary.total,
        trained,
        peak_memory: peak_memory(),
        adapter_bytes,
        checkpoint_bytes,
        reloaded,
        merged,
        base,
        saved: output.publish()?,
    };
    say(format_args!("\n{report}"))?;
    Ok(report)
}

/// Prints what the job starts from.
fn introduce(job: &Job, checkpoint: &Path, data: &Path) -> Result<()> {
    let (classes, size) = (job.training.classes.len(), job.input.size());
    let (checkpoint, data) = (checkpoint.display(), data.display());
    say(format_args!(
        "model   {checkpoint}, {classes} classes, images of {size}x{size}"
    ))?;
    let (trained_on, held) = (job.training.len(), job.held_out.len());
    say(format_args!(
        "images  {data}: {trained_on} to train on, {held} held out"
    ))?;
    for note in &job.notes {
        say(format_args!("        {note}"))?;
    }
    if job.widened {
        say(
            "        they are in colour and the model's are grey: its first layer is widened to \
             three channels and trained in full",
        )?;
    }
    if job.fresh {
        say(
            "        the model does not know all of these classes: it gets a fresh classifier, \
             trained in full",
        )?;
    }
    Ok(())
}

/// The base model with the adapter as it was saved.
fn reload(job: &Job, config: &LoraConfig, adapter: &Path) -> Result<lora::Lora<ConvNext>> {
    let mut model = job.base.to_lora(config)?;
    model.load_adapter(adapter)?;
    model.eval();
    Ok(model)
}

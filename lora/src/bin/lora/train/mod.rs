//! `lora train`: an adapter from a model and a file of examples.

mod augment;
mod flags;
mod folder;
mod job;
mod kind;
mod layers;
mod memory;
mod optimizer;
pub mod ranks;
mod report;
mod settings;
mod tune;

use crate::shell::common::Common;
use anyhow::{Context, Result, bail};
use clap::Args;
use flags::Flags;
use folder::Folder;
use job::Job;
use kind::Kind;
use layers::Layers;
use lora::train::Parallel;
use std::fs;
use std::path::{Path, PathBuf};
use tune::Run;

/// What `--help` ends with.
pub const AFTER: &str = "\
Data, by the keys of its lines:
  {\"text\": \"..\"}                            a language model learns the text
  {\"prompt\": \"..\", \"completion\": \"..\"}      .. the completion
  {\"messages\": [{\"role\": \"user\", ..}, ..]}  .. the assistant's answers, by the model's chat template
  {\"text\": \"..\", \"label\": \"spam\"}           an encoder tells texts apart; \"text_pair\" may hold a second text
  {\"anchor\": \"..\", \"positive\": \"..\"}        an encoder learns which belong together; or \"sentence1\", \
\"sentence2\" and \"score\"; \"negative\" may hold a text that does not belong
Any file that is no .jsonl is one text, which a language model learns by passages of --max-length tokens.
A folder holds images, a subfolder for each class, or has them in train/ and val/: a model of images learns these.

Settings may stand in a file, --config FILE.toml or FILE.yaml: max_length = 256. Flags win over the file.

The output folder: adapter_config.json and adapter_model.safetensors as PEFT has them, README.md, classes.json \
where there are classes, train.toml with all settings, log.jsonl, curves.svg, checkpoints. Ctrl-C writes a \
checkpoint and says how to go on; so does --resume after any end. The same settings give the same adapter on \
the same machine with the same number of threads, stopped or not.

Built with the feature mpi, `mpirun -n 4 lora train ..` trains with four processes on one or several machines, \
each of which computes a share of every batch: --batch counts the examples of all. The processes read the same \
model and data; the first one measures and writes. For --resume all must see the output folder. kill -USR1 of \
mpirun stops all as Ctrl-C stops one process; Ctrl-C of mpirun leaves them a second.";

/// The options.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Options {
    #[command(flatten)]
    flags: Flags,
    /// Settings in a file, TOML or YAML; flags win
    #[arg(long, short, value_name = "FILE", help_heading = "The run")]
    config: Option<PathBuf>,
    /// Go on with the run in the output folder, with its settings
    #[arg(long, conflicts_with = "force", help_heading = "The run")]
    resume: bool,
    /// Replace a run in the output folder
    #[arg(long, help_heading = "The run")]
    force: bool,
    /// Say what the run would take, and train nothing
    #[arg(long, help_heading = "The run")]
    dry_run: bool,
    /// Print one JSON object at the end, and nothing else, to the standard output
    #[arg(long, help_heading = "The run")]
    json: bool,
}

/// Trains, with the other processes that `mpirun` has started.
pub fn run(options: &Options) -> Result<()> {
    ranks::run(|parallel| train(options, parallel))
}

fn train(options: &Options, parallel: &Parallel) -> Result<()> {
    let mut given = Layers::default();
    if let Some(path) = &options.config {
        given.file(path)?;
    }
    given.flags(&options.flags)?;
    let output = given.text("output")?.unwrap_or("output");
    let folder = Folder::new(Path::new(output), options.resume, options.force);
    if !options.dry_run && parallel.is_first() {
        folder.check()?;
    }
    let mut layers = Layers::default();
    if options.resume {
        layers.file(&folder.settings()?)?;
    }
    let earlier = options.resume.then(|| layers.clone());
    if let Some(path) = &options.config {
        layers.file(path)?;
    }
    layers.flags(&options.flags)?;
    for (key, what) in [
        (
            "model",
            "a directory with config.json, model.safetensors and tokenizer.json, a GGUF file, or OWNER/NAME on \
             the Hugging Face hub",
        ),
        (
            "data",
            "a JSONL file, a text, or a folder of images; `lora train --help` shows its lines",
        ),
    ] {
        if layers.text(key)?.is_none() {
            bail!("{} is missing: {what}", layers::flag(key));
        }
    }
    for key in ["data", "valid"] {
        if let Some(path) = layers.text(key)? {
            fs::metadata(path)
                .with_context(|| format!("cannot read {} {path}", layers::flag(key)))?;
        }
    }
    let data = layers.text("data")?.unwrap_or_default();
    let kind = Kind::of(Path::new(data))?;
    let mut settings = layers.settings(kind)?;
    if let Some(earlier) = earlier {
        let changed = settings.augment_follows(&earlier.settings(kind)?, |key| layers.name(key));
        if !changed.is_empty() {
            bail!("{}", changed.join("\n"));
        }
    }
    let common = Common {
        threads: settings.threads,
        // The other processes say nothing.
        json: options.json || !parallel.is_first(),
    };
    common.start()?;
    settings.threads = Some(rayon::current_num_threads());
    let job = Job::prepare(kind, &settings)?;
    job.run(&Run {
        settings: &settings,
        folder: &folder,
        resume: options.resume,
        dry_run: options.dry_run,
        common: &common,
        parallel,
    })
}

//! The command `lora`: adapters trained, measured, used, merged and looked into, without code.
//!
//! A file or folder a command, each with its options and a function `run`; `shell` is what they share. The
//! commands use the library as any program does.

mod chat;
mod classify;
mod completions;
mod embed;
mod eval;
mod files;
mod generate;
mod model;
mod shell;
mod texts;
mod train;

use clap::{Parser, Subcommand};
use files::{combine, convert, diff, extract, inspect, merge, resize};
use shell::end::{self, End};
use std::process::ExitCode;

/// LoRA adapters for the models of candle: train, measure, use, merge, look into them.
#[derive(Debug, Parser)]
#[command(name = "lora", version, propagate_version = true, after_help = end::CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train an adapter on a file of examples
    Train(Box<train::Options>),
    /// Measure a model, with and without adapters, on data that it has not seen
    Eval(eval::Options),
    /// Let a language model go on from prompts
    Generate(generate::Options),
    /// Talk with a language model
    Chat(chat::Options),
    /// Turn texts into vectors
    Embed(embed::Options),
    /// Tell the classes of texts or images
    Classify(classify::Options),
    /// Show what an adapter or a checkpoint holds: settings, layers, norms, what is suspicious
    Inspect(inspect::Options),
    /// Show how two adapters or two checkpoints differ
    Diff(diff::Options),
    /// Make an adapter from a base and a checkpoint that was tuned from it
    Extract(extract::Options),
    /// Make one adapter of several
    Combine(combine::Options),
    /// Give an adapter another rank
    Resize(resize::Options),
    /// Merge adapters into a checkpoint: safetensors or GGUF
    Merge(merge::Options),
    /// Write an adapter in another tool's format
    Convert(convert::Options),
    /// Print the completions of a shell, or the manual page
    Completions(completions::Options),
}

impl Command {
    fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Train(options) => train::run(options),
            Self::Eval(options) => eval::run(options),
            Self::Generate(options) => generate::run(options),
            Self::Chat(options) => chat::run(options),
            Self::Embed(options) => embed::run(options),
            Self::Classify(options) => classify::run(options),
            Self::Inspect(options) => inspect::run(options),
            Self::Diff(options) => diff::run(options),
            Self::Extract(options) => extract::run(options),
            Self::Combine(options) => combine::run(options),
            Self::Resize(options) => resize::run(options),
            Self::Merge(options) => merge::run(options),
            Self::Convert(options) => convert::run(options),
            Self::Completions(options) => completions::run::<Cli>(options),
        }
    }
}

fn main() -> ExitCode {
    lora::memory::keep();
    match Cli::try_parse() {
        Ok(cli) => End::of(cli.command.run()),
        Err(error) => {
            train::ranks::leave_to_first(error.exit_code());
            error.exit()
        }
    }
}

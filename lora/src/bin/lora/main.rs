//! The command `lora`: adapters trained, measured, used, merged and looked into, without code.
//!
//! A file a command, each with its options and a function `run`. The commands use the library as any
//! program does.

mod chat;
mod classify;
mod common;
mod completions;
mod embed;
mod end;
mod eval;
mod generate;
mod model;
mod print;
mod texts;
mod train;
mod whole;

use clap::{Parser, Subcommand};
use end::End;
use std::process::ExitCode;

/// LoRA adapters for the models of candle: train, measure, use, merge, look into them.
#[derive(Debug, Parser)]
#[command(name = "lora", version, about, propagate_version = true, after_help = end::CODES)]
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
            Self::Completions(options) => completions::run::<Cli>(options),
        }
    }
}

fn main() -> ExitCode {
    lora::memory::keep();
    End::of(Cli::parse().command.run())
}

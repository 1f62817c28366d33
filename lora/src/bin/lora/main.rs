//! The command `lora`: adapters trained, measured, used, merged and looked into, without code.
//!
//! A file a command, each with its options and a function `run`. The commands use the library as any
//! program does.

mod common;
mod completions;
mod end;
mod model;
mod print;
mod train;

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
    /// Print the completions of a shell, or the manual page
    Completions(completions::Options),
}

impl Command {
    fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Train(options) => train::run(options),
            Self::Completions(options) => completions::run::<Cli>(options),
        }
    }
}

fn main() -> ExitCode {
    lora::memory::keep();
    End::of(Cli::parse().command.run())
}

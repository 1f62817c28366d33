//! The options that commands share.

use crate::shell::print::say;
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use std::fmt::Display;
use std::{env, thread};

/// Where rayon and candle read their number of threads.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// How a command computes and prints.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Threads to compute with, at most one a core; another number may change the last bits of a result
    /// [default: RAYON_NUM_THREADS, else all cores]
    #[arg(long, value_parser = threads, value_name = "NUMBER")]
    pub threads: Option<usize>,
    /// Print one JSON object at the end, and nothing else, to the standard output
    #[arg(long)]
    pub json: bool,
}

impl Common {
    /// Sets the threads of this process. Call it once, before anything is computed.
    ///
    /// # Errors
    /// If the environment asks for more threads than there are cores.
    pub fn start(&self) -> Result<()> {
        set_threads(self.threads)
    }

    /// Prints a line for people, which a script that asked for JSON does not get.
    ///
    /// # Errors
    /// As [`say`].
    pub fn say(&self, line: impl Display) -> Result<()> {
        match self.json {
            true => Ok(()),
            false => say(line),
        }
    }

    /// Prints the result: as one line of JSON if that was asked for, else for people.
    ///
    /// # Errors
    /// As [`say`].
    pub fn result(&self, json: &impl Serialize, shown: impl Display) -> Result<()> {
        match self.json {
            true => say(serde_json::to_string(json)?),
            false => say(shown),
        }
    }
}

/// Sets the threads of this process, of which the calling one is the first: to the number asked for, else
/// to that of the environment, else to all cores.
///
/// # Errors
/// As [`Common::start`].
fn set_threads(asked: Option<usize>) -> Result<()> {
    let number = match (asked, env::var(VARIABLE)) {
        (Some(number), _) => number,
        (None, Ok(text)) => match threads(&text) {
            Ok(number) => number,
            Err(problem) => bail!("{VARIABLE} is {text}: {problem}"),
        },
        (None, Err(_)) => cores(),
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(number)
        .use_current_thread()
        .build_global()
        .context("cannot set the number of threads")
}

/// Reads a number of threads: more than cores only wait for each other.
///
/// # Errors
/// Says how many cores there are.
pub fn threads(text: &str) -> Result<usize, String> {
    let cores = cores();
    let number = text.parse().ok();
    let number = number.filter(|number| (1..=cores).contains(number));
    number.ok_or_else(|| format!("it must be from 1 to {cores}, the cores of this machine"))
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get())
}

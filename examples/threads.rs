//! How many threads the programs compute with.

use anyhow::{Context, Result, bail};
use std::{env, thread};

/// Where rayon and candle read their number of threads.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// The cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// Reads a number of threads: more than cores only wait for each other.
///
/// # Errors
/// Says how many cores there are.
pub fn parse(text: &str) -> Result<usize, String> {
    let cores = cores();
    let threads = text
        .parse()
        .ok()
        .filter(|threads| (1..=cores).contains(threads));
    threads.ok_or_else(|| format!("it must be from 1 to {cores}, the cores of this machine"))
}

/// Sets the threads of this process, of which the calling one is the first: to the number asked for,
/// else to that of the environment, else to `default`, or to all cores without one.
///
/// candle's own products and its ops on large tensors follow the environment alone, and ask the
/// system at each product where it says nothing. So the programs leave the work to ops of `lora`.
///
/// # Errors
/// If the environment asks for more threads than there are cores, or threads run already.
pub fn set(asked: Option<usize>, default: Option<usize>) -> Result<()> {
    let threads = match (asked, env::var(VARIABLE)) {
        (Some(threads), _) => threads,
        (None, Ok(text)) => match parse(&text) {
            Ok(threads) => threads,
            Err(problem) => bail!("{VARIABLE} is {text}: {problem}"),
        },
        (None, Err(_)) => default.unwrap_or_else(cores),
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .use_current_thread()
        .build_global()
        .context("cannot set the number of threads")
}

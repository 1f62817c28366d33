//! Adapts an image classifier to new images with LoRA; see `--help`.

use clap::Parser;
use lora_examples::finetune::{Options, run};
use lora_examples::memory::keep_freed;
use std::env;
use std::process::{Command, ExitCode, ExitStatus};

/// Where candle and rayon read the number of threads.
const THREADS: &str = "RAYON_NUM_THREADS";

fn main() -> ExitCode {
    keep_freed();
    let options = Options::parse();
    if let Some(status) = with_threads(&options) {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        return ExitCode::from(code.unwrap_or(1));
    }
    match run(&options) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the program anew with the number of threads in its environment, if it is not there yet:
/// candle reads it nowhere else, and a running program cannot safely change its environment.
fn with_threads(options: &Options) -> Option<ExitStatus> {
    options.check().ok()?;
    let threads = options.threads()?.to_string();
    let set = env::var(THREADS).ok();
    let wanted = match options.threads {
        Some(_) => set.as_ref() != Some(&threads),
        None => set.is_none(),
    };
    if !wanted {
        return None;
    }
    let mut command = Command::new(env::current_exe().ok()?);
    command.args(env::args_os().skip(1)).env(THREADS, threads);
    // If it cannot be started, this process does the work, on all threads.
    command.env_remove("CANDLE_NUM_THREADS").status().ok()
}

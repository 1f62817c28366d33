//! Adapts an image classifier to new images with LoRA; see `--help`.

use clap::Parser;
use lora_examples::finetune::{Options, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

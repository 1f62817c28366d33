//! Measures a training step and a forward pass, and prints one line of JSON.
//!
//! ```sh
//! cargo run --release --example step_bench -- --model convnext_tiny --mode lora --rank 2 --batch 8 --size 224 --steps 5 --seed 0
//! cargo run --release --example step_bench -- --model minilm --rank 8 --batch 16 --seq 128 --dropout 0.1
//! ```
//!
//! `lora/benches/step_bench.py` does the same work with PyTorch and PEFT and prints the same line,
//! without `written`; `lora/benches/burn` does that of `--model mlp` with burn.
//! `lora/benches/compare.py` runs them in turn.

mod adapt;
mod convnext;
mod data;
mod decoder;
mod encoder;
mod measure;
mod mlp;
mod options;
mod vit;

use crate::program;
use anyhow::{Result, bail};
use clap::Parser;
use options::{Args, Written};
use std::process::ExitCode;

/// The program.
pub fn main() -> ExitCode {
    lora::memory::keep();
    let args = Args::parse();
    program::run(|| {
        check(&args)?;
        lora::seed_dropout(args.seed);
        if let Some(shape) = decoder::shape(&args.model) {
            return decoder::run(&args, shape);
        }
        match args.model.as_str() {
            "minilm" => encoder::run(&args),
            "mlp" => mlp::run(&args),
            "vit_b16" => vit::run(&args),
            _ => convnext::run(&args),
        }
    })
}

/// Refuses options that the model has no use for.
fn check(args: &Args) -> Result<()> {
    let model = args.model.as_str();
    if args.dropout > 0.0 && !matches!(model, "minilm" | "vit_b16") {
        bail!("--dropout is for minilm and vit_b16: the layers of {model} drop nothing");
    }
    if args.weights.is_some() && model == "mlp" {
        bail!("--weights is for models that have a checkpoint: mlp has none");
    }
    if args.written == Written::User && model == "vit_b16" {
        bail!("--written user: of vit_b16 there is the library's model alone");
    }
    Ok(())
}

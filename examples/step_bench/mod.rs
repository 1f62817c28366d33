//! Measures a training step and a forward pass, and prints one line of JSON.
//!
//! ```sh
//! cargo run --release --example step_bench -- --model convnext_tiny --mode lora --rank 2 --batch 8 --size 224 --steps 5 --seed 0
//! ```
//!
//! `lora/benches/step_bench.py` does the same work with PyTorch and PEFT and prints the same line,
//! without `written`; `lora/benches/compare.py` runs both in turn.

mod images;
mod language;

use crate::args::{any_number, count};
use crate::program;
use anyhow::Result;
use candle_core::{DType, IndexOp, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use clap::Parser;
use lora::{Lora, LoraConfig, LoraModel, LoraModule, profile};
use std::process::ExitCode;
use std::time::Instant;

/// Measures a training step and a forward pass, and prints one line of JSON.
///
/// A step is the forward pass, cross-entropy, the backward pass and AdamW's update, on random images
/// and labels, or on random tokens that each predict the next one. Times are medians, in seconds, after one step that is not counted; memory is the
/// process's resident set in MB, before the first step and at its peak until the last one, and null
/// where there is no /proc.
#[derive(Parser)]
#[command(name = "step_bench", mut_args(any_number))]
struct Args {
    /// The model's name: a ConvNeXt of lora::models, or smollm2 for SmolLM2-135M's shape.
    #[arg(long, default_value = "convnext_tiny")]
    model: String,

    /// What is trained: adapters, every parameter, or nothing. Without training there is no step_s.
    #[arg(long, default_value = "lora")]
    mode: Mode,

    /// Rank of the adapters.
    #[arg(long, default_value_t = 2, value_parser = count)]
    rank: usize,

    /// Images or sequences in a batch.
    #[arg(long, default_value_t = 8, value_parser = count)]
    batch: usize,

    /// Height and width of the images.
    #[arg(long, default_value_t = 224, value_parser = count)]
    size: usize,

    /// Tokens in a sequence.
    #[arg(long, default_value_t = 256, value_parser = count)]
    seq: usize,

    /// What an adapter is: LoRA's update, or DoRA's.
    #[arg(long, default_value = "lora")]
    variant: Variant,

    /// The layers of a language model that get an adapter: queries and values, or all linear layers but
    /// the head.
    #[arg(long, default_value = "qv")]
    targets: Choice,

    /// Steps, and forward passes, to measure.
    #[arg(long, default_value_t = 5, value_parser = count)]
    steps: usize,

    /// Seed of weights, images, labels and tokens.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Whose code the model is: this crate's, or a user's over plain candle layers with nothing
    /// fused by hand (examples/user_convnext.rs, examples/user_llama.rs).
    #[arg(long, default_value = "library")]
    written: Written,

    /// Merge the adapters before the forward passes are timed.
    #[arg(long)]
    merge: bool,

    /// What the backward pass computes anew instead of keeping it, in the library's model: nothing,
    /// the hidden values of each MLP (of images' models), or each block.
    #[arg(long, default_value = "none")]
    recompute: Recompute,

    /// Dtype of the frozen weights and the activations; adapters are f32.
    #[arg(long, default_value = "f32")]
    dtype: Precision,

    /// Run one more step, or without training one more forward pass, and print where its time goes,
    /// by op, to the standard error.
    #[arg(long)]
    profile: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Mode {
    Lora,
    Full,
    Base,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Variant {
    Lora,
    Dora,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Choice {
    Qv,
    AllLinear,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Recompute {
    None,
    Mlp,
    Block,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Written {
    Library,
    User,
}

/// The program.
pub fn main() -> ExitCode {
    lora::memory::keep();
    let args = Args::parse();
    program::run(|| {
        match language::SHAPES
            .iter()
            .find(|shape| shape.name == args.model)
        {
            Some(shape) => language::run(&args, shape),
            None => images::run(&args),
        }
    })
}

/// What a model computes of a batch.
type Pass<M> = Box<dyn Fn(&M) -> Result<Tensor>>;

/// A model with what a step and a forward pass do to it.
struct Bench<M: LoraModel> {
    model: Lora<M>,
    loss: Pass<Lora<M>>,
    output: Pass<Lora<M>>,
}

impl<M: LoraModel> Bench<M> {
    /// Measures and prints the line.
    fn run(self, args: &Args, written: &str) -> Result<()> {
        let Self {
            mut model,
            loss,
            output,
        } = self;
        let before = memory("VmRSS:");
        let mut step_s = None;
        if args.mode != Mode::Base {
            let params = ParamsAdamW {
                lr: 1e-3,
                ..Default::default()
            };
            let mut optimizer = AdamW::new(model.trainable_vars(), params)?;
            let mut step = || {
                let loss = loss(&model)?;
                optimizer.step(&model.backward(&loss)?)?;
                Ok(())
            };
            step_s = median(args.steps, &mut step)?;
            if args.profile {
                print_profile(step)?;
            }
        }
        let trained = memory("VmHWM:");
        model.eval();
        if args.merge {
            model.merge()?;
        }
        let pass = || {
            // Reads a value, so that the time holds the whole pass on any device.
            let value = output(&model)?.flatten_all()?.i(0)?;
            value.to_dtype(DType::F32)?.to_scalar::<f32>()?;
            Ok(())
        };
        let forward_s = median(args.steps, pass)?;
        if args.profile && args.mode == Mode::Base {
            print_profile(pass)?;
        }
        let peak = match args.mode {
            Mode::Base => memory("VmHWM:"),
            _ => trained,
        };
        let (mode, rank) = match args.mode {
            Mode::Lora => ("lora", Some(args.rank)),
            Mode::Full => ("full", None),
            Mode::Base => ("base", None),
        };
        let line = serde_json::json!({
            "model": args.model,
            "mode": mode,
            "written": written,
            "rank": rank,
            "batch": args.batch,
            "size": args.size,
            "seq": args.seq,
            "step_s": step_s,
            "forward_s": forward_s,
            "rss_before_mb": before,
            "peak_rss_mb": peak,
            "trainable": model.summary().trainable,
            "threads": candle_core::utils::get_num_threads(),
        });
        program::say(line)
    }
}

impl Args {
    /// The settings of the adapters, but for their targets.
    fn config(&self) -> LoraConfig {
        let dora = self.variant == Variant::Dora;
        LoraConfig::new(self.rank).seed(self.seed).use_dora(dora)
    }
}

/// Prints where the time of a run goes.
fn print_profile(run: impl FnOnce() -> Result<()>) -> Result<()> {
    let (result, report) = profile::record(run);
    program::note(report)?;
    result
}

/// The median time of `count` runs, after one that is not counted.
fn median(count: usize, mut run: impl FnMut() -> Result<()>) -> Result<Option<f64>> {
    run()?;
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(match times.len() {
        0 => None,
        n => Some((times[(n - 1) / 2] + times[n / 2]) / 2.0),
    })
}

/// A line of Linux's account of this process, in MB.
fn memory(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kilobytes / 1024.0 * 10.0).round() / 10.0)
}

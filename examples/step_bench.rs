//! Measures a training step and a forward pass, and prints one line of JSON.
//!
//! ```sh
//! cargo run --release --example step_bench -- --model convnext_tiny --mode lora --rank 2 --batch 8 --size 224 --steps 5 --seed 0
//! ```
//!
//! `lora/benches/step_bench.py` does the same work with PyTorch and PEFT and prints the same line,
//! without `written`; `lora/benches/compare.py` runs both in turn.

use crate::args::{any_number, count};
use crate::{program, rank, user_convnext};
use anyhow::{Context, Result};
use candle_core::{DType, Device, IndexOp, Module, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss::cross_entropy};
use clap::Parser;
use lora::models::convnext::{ConvNext, ConvNextConfig};
use lora::models::{self, Architecture, Options, Weights};
use lora::{Lora, LoraConfig, LoraModel, LoraModule, profile};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use std::process::ExitCode;
use std::time::Instant;

/// Measures a training step and a forward pass, and prints one line of JSON.
///
/// A step is the forward pass, cross-entropy, the backward pass and AdamW's update, on random images
/// and labels. Times are medians, in seconds, after one step that is not counted; memory is the
/// process's resident set in MB, before the first step and at its peak until the last one, and null
/// where there is no /proc.
#[derive(Parser)]
#[command(name = "step_bench", mut_args(any_number))]
struct Args {
    /// The model's name.
    #[arg(long, default_value = "convnext_tiny")]
    model: String,

    /// What is trained: adapters, every parameter, or nothing. Without training there is no step_s.
    #[arg(long, default_value = "lora")]
    mode: Mode,

    /// Rank of the adapters.
    #[arg(long, default_value_t = 2, value_parser = count)]
    rank: usize,

    /// Images in a batch.
    #[arg(long, default_value_t = 8, value_parser = count)]
    batch: usize,

    /// Height and width of the images.
    #[arg(long, default_value_t = 224, value_parser = count)]
    size: usize,

    /// Steps, and forward passes, to measure.
    #[arg(long, default_value_t = 5, value_parser = count)]
    steps: usize,

    /// Seed of weights, images and labels.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Whose code the model is: this crate's, or a user's over plain candle layers with nothing
    /// fused by hand (examples/user_convnext.rs).
    #[arg(long, default_value = "library")]
    written: Written,

    /// Merge the adapters before the forward passes are timed.
    #[arg(long)]
    merge: bool,

    /// What the backward pass computes anew instead of keeping it, in the library's model: nothing,
    /// the hidden values of each MLP, or each block.
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

#[derive(Clone, Copy, clap::ValueEnum)]
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
    program::run(|| match args.written {
        Written::Library => run::<ConvNext>(&args, "library"),
        Written::User => run::<user_convnext::ConvNext>(&args, "user"),
    })
}

fn run<M>(args: &Args, written: &str) -> Result<()>
where
    M: Architecture<Config = ConvNextConfig>,
    Lora<M>: Module,
{
    let weights = Weights::Random(args.seed);
    let created = models::create::<M>(&args.model, weights, &Options::new())?;
    let config = created.config;
    if args.mode == Mode::Lora {
        rank::check::<M>(&config, &LoraConfig::new(args.rank))?;
    }
    let model = convert(created.model, args, config.head_norm_first)?;
    let mut model = model.to_dtype(args.dtype.dtype())?;
    let (images, labels) = data(args, config.in_chans, config.num_classes)?;

    let forward = |model: &Lora<M>| {
        let logits = model.forward(&images);
        logits.with_context(|| format!("--size {} does not suit the model", args.size))
    };

    let before = memory("VmRSS:");
    let mut step_s = None;
    if args.mode != Mode::Base {
        let params = ParamsAdamW {
            lr: 1e-3,
            ..Default::default()
        };
        let mut optimizer = AdamW::new(model.trainable_vars(), params)?;
        let mut step = || {
            let logits = forward(&model)?.to_dtype(DType::F32)?;
            let loss = cross_entropy(&logits, &labels)?;
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
        let logit = forward(&model)?.i((0, 0))?;
        logit.to_dtype(DType::F32)?.to_scalar::<f32>()?;
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
        "step_s": step_s,
        "forward_s": forward_s,
        "rss_before_mb": before,
        "peak_rss_mb": peak,
        "trainable": model.summary().trainable,
        "threads": candle_core::utils::get_num_threads(),
    });
    program::say(line)
}

fn convert<M: LoraModel>(base: M, args: &Args, norm_pre: bool) -> Result<Lora<M>> {
    let config = LoraConfig::new(args.rank).seed(args.seed);
    let config = match args.recompute {
        Recompute::None => config,
        Recompute::Mlp => config.recompute(["mlp"]),
        Recompute::Block => config.recompute(r"stages\.\d+\.blocks\.\d+"),
    };
    Ok(match args.mode {
        Mode::Lora => base.to_lora(&config)?,
        Mode::Full => {
            let mut all = vec!["stem", "stages", "head"];
            all.extend(norm_pre.then_some("norm_pre"));
            base.to_lora(&config.modules_to_save(all))?
        }
        Mode::Base => base.to_frozen()?,
    })
}

/// Random images and labels.
fn data(args: &Args, channels: usize, classes: usize) -> Result<(Tensor, Tensor)> {
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let shape = (args.batch, channels, args.size, args.size);
    let count = args.batch * channels * args.size * args.size;
    let mut pixels = Vec::<f32>::new();
    pixels
        .try_reserve_exact(count)
        .with_context(|| format!("--batch {} with --size {}", args.batch, args.size))?;
    pixels.extend((0..count).map(|_| rng.random::<f32>() * 4.0 - 2.0));
    let labels = (0..args.batch).map(|_| rng.random_range(0..classes.max(1) as u32));
    let labels: Vec<u32> = labels.collect();
    let images = Tensor::from_vec(pixels, shape, &Device::Cpu)?.to_dtype(args.dtype.dtype())?;
    Ok((images, Tensor::new(labels, &Device::Cpu)?))
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

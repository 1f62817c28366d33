//! Measures a training step and a forward pass of burn's LoRA on an MLP, and prints one line of JSON.
//!
//! ```sh
//! cd lora/benches/burn && cargo run --release -- --mode lora --rank 8 --batch 512
//! ```
//!
//! It does the work of `step_bench --model mlp` and prints the same line, without `written`.

use burn::module::{Lora, Module};
use burn::nn::{Gelu, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};
use clap::{Parser, ValueEnum};
use std::time::Instant;

/// Measures a training step and a forward pass of burn's LoRA on an MLP, and prints one line of JSON.
///
/// The MLP has layers of 768 and 3072; the loss is the mean square. RAYON_NUM_THREADS sets the threads.
#[derive(Parser)]
struct Args {
    /// The model's name: mlp, the only one.
    #[arg(long, default_value = "mlp", value_parser = ["mlp"])]
    model: String,

    /// What is trained: adapters, every parameter, or nothing.
    #[arg(long, default_value = "lora")]
    mode: Mode,

    /// Rank of the adapters.
    #[arg(long, default_value_t = 2)]
    rank: usize,

    /// Rows of the input.
    #[arg(long, default_value_t = 8)]
    batch: usize,

    /// Steps, and forward passes, to measure.
    #[arg(long, default_value_t = 5)]
    steps: usize,

    /// Seed of weights, inputs and targets.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    Lora,
    Full,
    Base,
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    act: Gelu,
    fc2: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Self {
            fc1: LinearConfig::new(768, 3072).init(device),
            act: Gelu::new(),
            fc2: LinearConfig::new(3072, 768).init(device),
        }
    }

    /// Draws the weights now: burn draws them where they are first read.
    fn draw(&self) {
        for layer in [&self.fc1, &self.fc2] {
            layer.weight.val();
            layer.bias.as_ref().map(|bias| bias.val());
        }
    }

    fn forward(&self, xs: Tensor<2>) -> Tensor<2> {
        self.fc2.forward(self.act.forward(self.fc1.forward(xs)))
    }
}

/// An optimiser takes the model and gives it back.
const PUT_BACK: &str = "each step puts the model back";

fn main() {
    let args = Args::parse();
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    device.seed(args.seed);
    let base = Mlp::new(&device);
    base.draw();
    let count = base.num_params();
    let (mut model, trainable) = match args.mode {
        Mode::Full => (base, count),
        Mode::Base => (base.no_grad(), 0),
        Mode::Lora => {
            let model = base.apply_lora(Lora::new(args.rank, args.rank as f64));
            let added = model.num_params() - count;
            (model, added)
        }
    };
    let uniform = Distribution::Uniform(-2.0, 2.0);
    let xs = Tensor::<2>::random([args.batch, 768], uniform, &plain);
    let targets = Tensor::<2>::random([args.batch, 768], uniform, &plain);

    let before = memory("VmRSS:");
    let mut step_s = None;
    if args.mode != Mode::Base {
        let (xs, targets) = (Tensor::from_inner(xs.clone()), Tensor::from_inner(targets));
        let mut optimizer = AdamWConfig::new()
            .with_epsilon(1e-8)
            .with_weight_decay(0.01)
            .init();
        let mut trained = Some(model);
        step_s = median(args.steps, || {
            let model = trained.take().expect(PUT_BACK);
            let difference = model.forward(xs.clone()) - targets.clone();
            let loss = difference.powi_scalar(2).mean();
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            trained = Some(optimizer.step(1e-3, model, grads));
        });
        model = trained.expect(PUT_BACK);
    }
    let trained = memory("VmHWM:");
    let model = model.valid();
    let forward_s = median(args.steps, || {
        model.forward(xs.clone()).into_data();
    });
    let peak = match args.mode {
        Mode::Base => memory("VmHWM:"),
        _ => trained,
    };
    let line = serde_json::json!({
        "model": args.model,
        "mode": match args.mode {
            Mode::Lora => "lora",
            Mode::Full => "full",
            Mode::Base => "base",
        },
        "rank": (args.mode == Mode::Lora).then_some(args.rank),
        "batch": args.batch,
        "size": null,
        "seq": null,
        "step_s": step_s,
        "forward_s": forward_s,
        "rss_before_mb": before,
        "peak_rss_mb": peak,
        "trainable": trainable,
        "threads": rayon::current_num_threads(),
    });
    println!("{line}");
}

/// The median time of `count` runs, after one that is not counted.
fn median(count: usize, mut run: impl FnMut()) -> Option<f64> {
    run();
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    let mut times: Vec<f64> = (0..count).map(time).collect();
    times.sort_by(f64::total_cmp);
    match times.len() {
        0 => None,
        n => Some((times[(n - 1) / 2] + times[n / 2]) / 2.0),
    }
}

/// A line of Linux's account of this process, in MB.
fn memory(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kilobytes / 1024.0 * 10.0).round() / 10.0)
}

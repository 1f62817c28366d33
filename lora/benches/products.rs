//! The products of a transformer's linear layers beside candle's, over a grid of shapes.
//!
//! ```sh
//! cargo bench -p lora-candle --bench products             # the grid, in about five minutes
//! cargo bench -p lora-candle --bench products -- 49152    # the shapes whose name has it
//! cargo bench -p lora-candle --bench products -- --test   # runs each once, untimed
//! ```
//!
//! A shape is rows x inputs x outputs. A forward pass is one product. A step is the forward and
//! backward pass of a layer with an adapter of rank 8, beside the two products with the weight that it
//! needs at least. Ours and candle's run in turn, and candle's go to gemm with all threads; the table
//! holds the medians, and ours as a share of candle's.

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{Linear, Module};
use lora::layers::LoraLinear;
use lora::{LoraConfig, LoraModel, ops};
use std::time::Instant;

const ROWS: [usize; 6] = [1, 16, 64, 256, 1024, 4096];

/// Inputs and outputs: MiniLM's, SmolLM2-135M's, those of a model of 7 billion parameters.
const LAYERS: [(usize, usize); 11] = [
    (64, 64),
    (384, 384),
    (384, 1536),
    (1536, 384),
    (576, 192),
    (576, 1536),
    (1536, 576),
    (2048, 2048),
    (4096, 11008),
    (576, 49152),
    (49152, 576),
];

/// The largest product, in multiplications: more takes seconds.
const LARGEST: usize = 50_000_000_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let test = arguments.iter().any(|argument| argument == "--test");
    let wanted = arguments
        .iter()
        .find(|argument| !argument.starts_with("--"));
    println!(
        "| rows x inputs x outputs | forward, ms | candle | share | step, ms | candle | share |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (inputs, outputs) in LAYERS {
        for rows in ROWS {
            let name = format!("{rows}x{inputs}x{outputs}");
            if wanted.is_some_and(|part| !name.contains(part)) || rows * inputs * outputs > LARGEST
            {
                continue;
            }
            let shape = Shape::new(rows, inputs, outputs)?;
            let rounds = match test {
                true => 1,
                // About a second for a shape, at 50 billion multiplications a second.
                false => (8_000_000_000 / (rows * inputs * outputs)).clamp(3, 41),
            };
            let [ours, candle] = shape.forward(rounds)?;
            let [our_step, candle_step] = shape.step(rounds)?;
            println!(
                "| {name} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
                1e3 * ours,
                1e3 * candle,
                ours / candle,
                1e3 * our_step,
                1e3 * candle_step,
                our_step / candle_step,
            );
        }
    }
    Ok(())
}

struct Shape {
    /// (rows, inputs)
    x: Tensor,
    /// (outputs, inputs)
    weight: Tensor,
    /// (rows, outputs)
    grad: Tensor,
    layer: LoraLinear,
}

impl Shape {
    fn new(rows: usize, inputs: usize, outputs: usize) -> Result<Self> {
        let normal = |shape: (usize, usize)| Tensor::randn(0f32, 1f32, shape, &Device::Cpu);
        let weight = normal((outputs, inputs))?;
        Ok(Self {
            x: normal((rows, inputs))?,
            grad: normal((rows, outputs))?,
            layer: Linear::new(weight.clone(), None).to_lora(&LoraConfig::new(8))?,
            weight,
        })
    }

    /// One product against one.
    fn forward(&self, rounds: usize) -> Result<[f64; 2]> {
        let ours = || ops::linear(&self.x, &self.weight, None);
        medians(rounds, ours, || self.x.matmul(&self.weight.t()?))
    }

    /// A layer with an adapter of rank 8, both passes, against the two products with the weight.
    fn step(&self, rounds: usize) -> Result<[f64; 2]> {
        let x = Var::from_tensor(&self.x)?;
        let ours = || self.layer.forward(&x)?.backward();
        let candle = || {
            self.x.matmul(&self.weight.t()?)?;
            self.grad.matmul(&self.weight)
        };
        medians(rounds, ours, candle)
    }
}

/// The median seconds of both, which run in turn after one run that is not counted.
fn medians<A, B>(
    rounds: usize,
    ours: impl Fn() -> Result<A>,
    candle: impl Fn() -> Result<B>,
) -> Result<[f64; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        let start = Instant::now();
        ours()?;
        let middle = Instant::now();
        candle()?;
        if round > 0 {
            times[0].push((middle - start).as_secs_f64());
            times[1].push(middle.elapsed().as_secs_f64());
        }
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}

//! Parts of tuples that are what they cannot be, each an error at the part.

use candle_nn::{LayerNorm, Linear};
use lora::LoraModel;
use std::collections::VecDeque;

struct Shift(f64);

#[derive(LoraModel)]
struct Net {
    #[lora(0(rank))]
    foreign: (Linear, Shift),
    #[lora(0(rank), 1(rank))]
    norm: Vec<(Linear, LayerNorm)>,
    fc: Linear,
}

#[derive(LoraModel)]
struct Skipped {
    #[lora(0(skip))]
    layer: (Linear, LayerNorm),
    #[lora(1(skip))]
    no_clone: (Linear, Shift),
    fc: Linear,
}

#[derive(LoraModel)]
struct Queue {
    #[lora(0(rank))]
    queue: VecDeque<(Linear, LayerNorm)>,
    fc: Linear,
}

fn main() {}

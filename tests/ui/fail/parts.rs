//! Attributes for the parts of tuples: what is wrong is said of each.

use candle_core::Tensor;
use candle_nn::{LayerNorm, Linear};
use lora::LoraModel;

type Pair = (Linear, LayerNorm);

#[derive(LoraModel)]
struct Net {
    #[lora(0(rank), 2(skip))]
    too_many: (Linear, LayerNorm),
    #[lora(0(rank), 0(name = "fc"))]
    twice: (Linear, LayerNorm),
    #[lora(0(rank))]
    no_tuple: Vec<Linear>,
    #[lora(0(rank))]
    hidden: Pair,
    #[lora(rank, 1(skip))]
    both: (Linear, Option<Tensor>),
    #[lora(0(rnk), 1(name = ""))]
    keys: Vec<(Linear, Tensor)>,
    #[lora(0, 1 = skip)]
    no_list: (Linear, LayerNorm),
    #[lora(0(skip, name = "fc"), 1(skip, rank))]
    together: (Linear, LayerNorm),
    #[lora(0(0(alpha = 1.0), 5(skip)))]
    nested: ((Linear, Linear), LayerNorm),
    #[lora(0(rank) 1(skip))]
    comma: (Linear, LayerNorm),
}

#[derive(Clone, Debug, LoraModel)]
#[lora(plain)]
struct Plain {
    #[lora(0(name = "x"))]
    pair: (usize, usize),
}

fn main() {}

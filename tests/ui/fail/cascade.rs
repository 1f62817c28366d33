//! A field without an attribute is one error, and one where a method uses it, whatever stands above.

use candle_core::{Module, Result, Tensor};
use candle_nn::Linear;
use lora::LoraModel;

struct Span;

#[derive(LoraModel)]
struct Wrapper {
    #[lora(rank)]
    inner: Linear,
    span: Span,
}

#[lora::forward]
impl Module for Wrapper {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.inner.forward(xs)
    }
}

#[derive(LoraModel)]
struct Block {
    first: Wrapper,
    second: Wrapper,
}

#[lora::forward]
impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward(xs)?)
    }
}

#[derive(LoraModel)]
struct Net {
    blocks: Vec<Block>,
    last: Wrapper,
}

fn main() {}

//! Every error of an item in one build, and none about what the item would have become.

use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module};
use lora::{LoraConfig, LoraModel};

#[derive(LoraModel)]
#[lora(nme = "Adapted")]
struct Net {
    #[lora(rank = 0)]
    first: Linear,
    #[lora(rank, skip)]
    second: Linear,
    #[lora(name = "")]
    third: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.first)?.apply(&self.second)
    }
}

#[derive(LoraModel)]
struct Outer {
    net: Net,
}

fn convert(outer: &Outer) -> lora::Result<LoraOuter> {
    outer.to_lora(&LoraConfig::new(2))
}

fn main() {}

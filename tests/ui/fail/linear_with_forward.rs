use candle_core::{Result, Tensor};
use candle_nn::Module;
use lora::LoraModel;

#[derive(Clone, LoraModel)]
#[lora(linear)]
struct Projection {
    weight: Tensor,
}

#[lora::forward]
impl Module for Projection {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.matmul(&self.weight.t()?)
    }
}

#[lora::forward]
impl Projection {
    fn weight(&self) -> &Tensor {
        &self.weight
    }
}

fn main() {}

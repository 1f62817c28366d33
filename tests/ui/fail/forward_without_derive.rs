use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module};

struct Net {
    fc: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc)
    }
}

fn main() {}

use candle_core::Tensor;
use lora::LoraModel;

#[derive(Clone, LoraModel)]
#[lora(linear)]
enum Projection {
    Dense { weight: Tensor },
}

fn main() {}

use candle_core::Tensor;
use lora::LoraModel;

#[derive(LoraModel)]
#[lora(linear)]
struct Projection {
    weight: Tensor,
}

fn main() {}

use candle_core::Tensor;
use lora::LoraModel;

#[derive(Clone, LoraModel)]
#[lora(linear)]
struct Several {
    weight: Vec<Tensor>,
}

#[derive(Clone, LoraModel)]
#[lora(linear)]
struct Switch {
    weight: Tensor,
    bias: bool,
}

fn main() {}

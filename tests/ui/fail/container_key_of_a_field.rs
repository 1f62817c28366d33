use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
#[lora(trainable)]
struct Net {
    fc: Linear,
}

fn main() {}

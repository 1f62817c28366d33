use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(rank = 4, trainable)]
    a: Linear,
    #[lora(skip, config)]
    b: Linear,
}

fn main() {}

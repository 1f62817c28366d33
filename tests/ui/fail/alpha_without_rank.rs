use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(alpha = 8.0)]
    a: Linear,
    #[lora(trainable, dropout = 0.1)]
    b: Linear,
}

fn main() {}

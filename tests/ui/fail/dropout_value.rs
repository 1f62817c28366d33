use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(rank, dropout = 1.0)]
    a: Linear,
    #[lora(rank, dropout = -0.1)]
    b: Linear,
}

fn main() {}

use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(trainabel)]
    head: Linear,
    #[lora(freeze)]
    fc: Linear,
    #[lora(plain)]
    out: Linear,
}

fn main() {}

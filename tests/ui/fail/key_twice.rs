use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(rank = 2, rank = 4)]
    fc: Linear,
    #[lora(name = "a")]
    #[lora(name = "b")]
    out: Linear,
}

fn main() {}

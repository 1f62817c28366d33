use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(rank = 0)]
    a: Linear,
    #[lora(rank = -2)]
    b: Linear,
    #[lora(rank = "4")]
    c: Linear,
    #[lora(rank = 4.0)]
    d: Linear,
    #[lora(rank = 4u8)]
    e: Linear,
    #[lora(rank = 99999999999999999999999)]
    f: Linear,
    #[lora(rank = )]
    g: Linear,
}

fn main() {}

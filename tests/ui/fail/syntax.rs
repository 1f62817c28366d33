use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora]
    a: Linear,
    #[lora = "rank"]
    b: Linear,
    #[lora(rank 4)]
    c: Linear,
    #[lora("rank")]
    d: Linear,
    #[lora(skip = true)]
    e: Linear,
    #[lora(rank = 4 alpha = 8)]
    f: Linear,
}

fn main() {}

use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(rank, alpha = 0.0)]
    a: Linear,
    #[lora(rank, alpha = -1)]
    b: Linear,
    #[lora(rank, alpha = 1e999)]
    c: Linear,
    #[lora(rank, alpha = "16")]
    d: Linear,
    #[lora(rank, alpha)]
    e: Linear,
    #[lora(rank, alpha = 8f32)]
    f: Linear,
}

fn main() {}

use candle_nn::{LayerNorm, Linear};
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(rank)]
    norm: LayerNorm,
    #[lora(rank = 4)]
    norms: Vec<LayerNorm>,
    #[lora(rank)]
    fc: Linear,
}

fn main() {}

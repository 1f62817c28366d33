use candle_nn::{LayerNorm, Linear};
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(rank)]
    fc: Linear,
    #[lora(skip)]
    norm: LayerNorm,
    #[lora(skip)]
    more: Vec<Option<Linear>>,
    #[lora(skip)]
    activation: candle_nn::Activation,
}

fn main() {}

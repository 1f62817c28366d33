use candle_nn::Linear;
use lora::{LoraConfig, LoraModel, LoraModule};

#[derive(LoraModel)]
struct Net {
    #[lora(rank)]
    fc: Linear,
}

fn again(model: &mut LoraNet, config: &LoraConfig) {
    let _ = model.to_lora(config);
}

fn main() {}

use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(config)]
    first: u8,
    #[lora(config)]
    second: u8,
    fc: Linear,
}

fn main() {}

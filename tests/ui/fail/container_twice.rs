use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
#[lora(name = "First")]
#[lora(name = "Second")]
struct Net {
    fc: Linear,
}

fn main() {}

use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
#[lora(crate = "not a path")]
struct Net {
    fc: Linear,
}

fn main() {}

use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
#[lora(name = "Lora Net")]
struct Net {
    fc: Linear,
}

fn main() {}

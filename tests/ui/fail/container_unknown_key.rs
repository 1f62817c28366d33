use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
#[lora(nane = "Adapted")]
struct Net {
    fc: Linear,
}

fn main() {}

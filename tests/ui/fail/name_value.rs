use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(name = "")]
    a: Linear,
    #[lora(name = "mlp..fc")]
    b: Linear,
    #[lora(name = fc)]
    c: Linear,
    #[lora(name)]
    d: Linear,
}

fn main() {}

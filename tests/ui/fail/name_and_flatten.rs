use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(name = "fc", flatten)]
    a: Linear,
    #[lora(skip, name = "fc")]
    b: Linear,
    #[lora(config, flatten)]
    c: u8,
}

fn main() {}

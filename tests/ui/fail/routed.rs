use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(routed = 2)]
    experts: Vec<Linear>,
    #[lora(skip, routed)]
    name: String,
}

fn main() {}

use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net<T> {
    #[lora(config = LoraNetConfig)]
    config: T,
    fc: Linear,
}

fn main() {}

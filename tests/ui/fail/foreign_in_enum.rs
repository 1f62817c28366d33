use candle_nn::Linear;
use lora::LoraModel;

struct Foreign;

#[derive(LoraModel)]
enum Net {
    Dense(Linear),
    Other(Foreign),
    Named { fc: Linear, item: Foreign },
}

fn main() {}

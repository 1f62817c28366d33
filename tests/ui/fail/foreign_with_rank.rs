use candle_nn::Linear;
use lora::LoraModel;

struct Foreign;

#[derive(LoraModel)]
struct Net {
    #[lora(rank)]
    item: Foreign,
    fc: Linear,
}

fn main() {}

use candle_nn::Linear;
use lora::LoraModel;

struct Foreign;

#[derive(LoraModel)]
struct Net {
    #[lora(rank)]
    fc: Linear,
    items: Vec<Foreign>,
}

fn main() {}

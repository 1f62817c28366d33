use candle_nn::Linear;
use lora::LoraModel;

#[derive(Clone, Debug, LoraModel)]
#[lora(plain, name = "Other", derive(Default))]
struct Net {
    #[lora(rank)]
    fc: Linear,
}

fn main() {}

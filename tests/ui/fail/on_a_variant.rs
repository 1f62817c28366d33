use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
enum Net {
    #[lora(rank)]
    Dense(Linear),
    Other,
}

fn main() {}

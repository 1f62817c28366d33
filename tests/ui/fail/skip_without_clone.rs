use candle_nn::Linear;
use lora::LoraModel;

#[derive(Debug)]
struct Cache;

#[derive(LoraModel)]
struct Net {
    fc: Linear,
    #[lora(skip)]
    cache: Option<Cache>,
}

fn main() {}

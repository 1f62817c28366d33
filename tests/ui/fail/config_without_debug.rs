use candle_nn::Linear;
use lora::LoraModel;

#[derive(Clone)]
struct NetConfig;

#[derive(LoraModel)]
struct Net {
    #[lora(config)]
    config: NetConfig,
    fc: Linear,
}

fn main() {}

use candle_nn::{ConvTranspose1d, ConvTranspose2d, Linear, PReLU};
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    #[lora(rank)]
    fc: Linear,
    #[lora(rank)]
    up: ConvTranspose1d,
    #[lora(rank = 4)]
    ups: Vec<ConvTranspose2d>,
    #[lora(rank)]
    act: PReLU,
}

#[derive(LoraModel)]
struct Skipping {
    #[lora(rank)]
    fc: Linear,
    #[lora(skip)]
    up: ConvTranspose1d,
    #[lora(skip)]
    act: Option<PReLU>,
    #[lora(skip)]
    cache: candle_nn::kv_cache::KvCache,
    #[lora(skip)]
    list: lora::layers::Sequential,
}

fn main() {}

use lora::{LoraConfig, LoraModel};

fn main() {
    let config = LoraConfig::new(4);
    let func = candle_nn::func(|xs| Ok(xs.clone()));
    let _ = func.to_lora(&config);
    let _ = candle_nn::seq().to_lora(&config);
}

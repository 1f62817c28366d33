use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    fc: Linear,
}

#[lora::forward]
impl Net {
    #[lora(rank)]
    fn first(&self) -> &Linear {
        &self.fc
    }
}

fn main() {}

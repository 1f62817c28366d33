use candle_nn::Linear;
use lora::LoraModel;

#[derive(LoraModel)]
struct Net {
    fc: Linear,
}

trait Load: Sized {
    fn load() -> Option<Self>;
}

#[lora::forward]
impl Load for Net {
    fn load() -> Option<Self> {
        None
    }
}

fn main() {}

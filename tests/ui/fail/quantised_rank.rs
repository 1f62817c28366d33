//! The same under `rank`.

use candle_core::quantized::QMatMul;
use lora::LoraModel;

#[derive(LoraModel)]
struct Attention {
    #[lora(rank)]
    q_proj: QMatMul,
    #[lora(rank)]
    layers: Vec<QMatMul>,
    heads: usize,
}

fn main() {}

//! The same under `rank`.

use candle_core::quantized::QTensor;
use lora::LoraModel;
use std::sync::Arc;

#[derive(LoraModel)]
struct Attention {
    #[lora(rank)]
    q_proj: Arc<QTensor>,
    #[lora(rank)]
    layers: Vec<Arc<QTensor>>,
    heads: usize,
}

fn main() {}

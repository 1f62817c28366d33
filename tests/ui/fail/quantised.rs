//! A quantised weight without its layer.

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module};
use lora::LoraModel;
use std::sync::Arc;

#[derive(LoraModel)]
struct Net {
    #[lora(rank)]
    k_proj: QMatMul,
    table: Arc<QTensor>,
    head: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let table = self.table.dequantize(xs.device())?;
        xs.matmul(&table)?.apply(&self.k_proj)?.apply(&self.head)
    }
}

fn main() {}

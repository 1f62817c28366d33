//! Quantised weights: one error a field, none for the methods. A user's type of that name is any other type.

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module};
use lora::LoraModel;
use std::sync::Arc;

mod own {
    use candle_nn::Linear;
    use lora::LoraModel;

    #[derive(LoraModel)]
    pub struct QMatMul {
        #[lora(rank)]
        fc: Linear,
    }
}

#[derive(LoraModel)]
struct Net {
    q_proj: QMatMul,
    #[lora(rank)]
    k_proj: QMatMul,
    layers: Vec<Option<QMatMul>>,
    table: Arc<QTensor>,
    own: own::QMatMul,
    #[lora(skip)]
    skipped: QMatMul,
    head: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = (self.q_proj.forward(xs)? + xs.apply(&self.k_proj)?)?;
        for layer in self.layers.iter().flatten() {
            xs = layer.forward(&xs)?;
        }
        xs.apply(&self.skipped)?.apply(&self.head)
    }
}

fn main() {}

//! Layers whose weight is quantised, in GGML's blocks, against the same layers dequantised.

mod conversion;
mod layers;
mod life;
mod start;
mod training;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Embedding, Linear};
use lora::LoraModel;
use lora::layers::{QEmbedding, QLinear};
use lora_tests::fixed;
use std::sync::Arc;

/// A weight whose blocks differ in scale.
fn blocks(dtype: GgmlDType, shape: (usize, usize), seed: usize) -> Arc<QTensor> {
    let scale = (fixed((shape.0, 1), DType::F32, seed + 1) + 1.5).unwrap();
    let weight = fixed(shape, DType::F32, seed);
    let weight = weight.broadcast_mul(&scale).unwrap();
    Arc::new(QTensor::quantize(&weight, dtype).unwrap())
}

fn dequantised(blocks: &QTensor) -> Tensor {
    blocks.dequantize(&Device::Cpu).unwrap()
}

/// A model of quantised layers: a lookup, two products, and a head that shares the table.
#[derive(Clone, LoraModel)]
struct Quantised {
    #[lora(rank)]
    embed: QEmbedding,
    #[lora(rank)]
    up: QLinear,
    #[lora(rank)]
    down: QLinear,
    head: QLinear,
}

/// The same model in full precision.
#[derive(Clone, LoraModel)]
struct Full {
    #[lora(rank)]
    embed: Embedding,
    #[lora(rank)]
    up: Linear,
    #[lora(rank)]
    down: Linear,
    head: Linear,
}

#[lora::forward]
impl Module for Quantised {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let xs = ids.apply(&self.embed)?;
        let hidden = xs.apply(&self.up)?.gelu()?.apply(&self.down)?;
        (xs + hidden)?.apply(&self.head)
    }
}

#[lora::forward]
impl Module for Full {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let xs = ids.apply(&self.embed)?;
        let hidden = xs.apply(&self.up)?.gelu()?.apply(&self.down)?;
        (xs + hidden)?.apply(&self.head)
    }
}

/// A model in blocks of this type, and the same model dequantised.
fn pair(dtype: GgmlDType) -> (Quantised, Full) {
    let width = dtype.block_size().max(32);
    let table = blocks(dtype, (11, width), 1);
    let (up, down) = (
        blocks(dtype, (2 * width, width), 2),
        blocks(dtype, (width, 2 * width), 3),
    );
    let bias = fixed(2 * width, DType::F32, 4);
    let full = Full {
        embed: Embedding::new(dequantised(&table), width),
        up: Linear::new(dequantised(&up), Some(bias.clone())),
        down: Linear::new(dequantised(&down), None),
        head: Linear::new(dequantised(&table), None),
    };
    let quantised = Quantised {
        embed: QEmbedding::new(table.clone()).unwrap(),
        up: QLinear::new(up, Some(bias)).unwrap(),
        down: QLinear::new(down, None).unwrap(),
        head: QLinear::new(table, None).unwrap(),
    };
    (quantised, full)
}

/// Token ids.
fn ids() -> Tensor {
    Tensor::new(&[[3u32, 10, 0, 7], [1, 1, 9, 4]], &Device::Cpu).unwrap()
}

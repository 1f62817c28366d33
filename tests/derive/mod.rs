//! What the macros make of each shape of type: paths, marks, conversions.

use candle_core::{DType, Device, Tensor};
use candle_nn::{LayerNorm, Linear};
use lora::{Lora, LoraConfig, LoraModel, LoraModule};

mod forward;
mod generics;
mod names;
mod shapes;

pub fn linear(inputs: usize, outputs: usize) -> Linear {
    let weight = Tensor::ones((outputs, inputs), DType::F32, &Device::Cpu).unwrap();
    Linear::new(weight, None)
}

pub fn norm(width: usize) -> LayerNorm {
    let weight = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
    LayerNorm::new_no_bias(weight, 1e-5)
}

/// The paths of the parameters with a rank for each adapter: `fc1.weight`, `fc1:2`; trained base
/// parameters with a star: `head.weight*`.
pub fn outline<M: LoraModule>(model: &M) -> Vec<String> {
    let mut outline = Vec::new();
    for param in model.named_params() {
        if let Some((layer, _)) = param.path.split_once(".lora_A") {
            outline.push(format!("{layer}:{}", param.tensor.dims()[0]));
        } else if !param.path.contains("lora_") {
            let star = if param.is_trainable() { "*" } else { "" };
            outline.push(format!("{}{star}", param.path));
        }
    }
    outline
}

/// Converts with rank 2, checks the outline and that the way back gives the same parameters.
pub fn check<B: LoraModel>(base: &B, expected: &[&str]) -> Lora<B> {
    let model = base.to_lora(&LoraConfig::new(2)).unwrap();
    assert_eq!(outline(&model), expected);
    let back = model.to_base().unwrap();
    let (before, after) = (base.to_frozen().unwrap(), back.to_frozen().unwrap());
    assert_eq!(outline(&before), outline(&after));
    model
}

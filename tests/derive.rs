//! What `#[derive(LoraModel)]` makes of each shape of type: paths, marks, conversions.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, LayerNorm, Linear};
use lora::{LoraConfig, LoraModel, LoraModule};

fn linear(inputs: usize, outputs: usize) -> Linear {
    let weight = Tensor::ones((outputs, inputs), DType::F32, &Device::Cpu).unwrap();
    Linear::new(weight, None)
}

fn norm(width: usize) -> LayerNorm {
    let weight = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
    LayerNorm::new_no_bias(weight, 1e-5)
}

/// The paths of all parameters, trained ones with a star.
fn paths<M: LoraModule>(model: &M) -> Vec<String> {
    let params = model.named_params().into_iter();
    let star = |trained| if trained { "*" } else { "" };
    params
        .map(|param| format!("{}{}", param.path, star(param.is_trainable())))
        .collect()
}

#[derive(Clone, Debug, LoraModel)]
struct Mlp {
    #[lora(rank)]
    fc1: Linear,
    #[lora(rank = 3, alpha = 6.0)]
    fc2: Linear,
    act: Activation,
    #[lora(name = "ln")]
    norm: LayerNorm,
    #[lora(trainable)]
    head: Linear,
    #[lora(skip)]
    size: (usize, usize, f32),
}

#[test]
fn a_struct() {
    let base = Mlp {
        fc1: linear(4, 6),
        fc2: linear(6, 4),
        act: Activation::Relu,
        norm: norm(4),
        head: linear(4, 2),
        size: (1, 2, 0.5),
    };
    let model: LoraMlp = base.to_lora(&LoraConfig::new(2)).unwrap();
    println!("{model:?} {:?}", paths(&model));
    let back: Mlp = model.to_base().unwrap();
    assert_eq!(back.size, (1, 2, 0.5));
}

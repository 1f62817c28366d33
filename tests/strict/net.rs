//! The model of these tests.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{LayerNorm, Linear, Module};
use lora::{LoraConfig, LoraModel, LoraModule, peft};
use lora_tests::fixed;
use std::path::Path;

#[derive(Clone, Debug, LoraModel)]
pub struct Block {
    fc1: Linear,
    fc2: Linear,
}

#[derive(Clone, Debug, LoraModel)]
pub struct Inner {
    layers: Vec<Block>,
}

#[derive(Clone, Debug, LoraModel)]
pub struct Net {
    model: Inner,
    norm: LayerNorm,
    my_head: Linear,
    head: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.clone();
        for block in &self.model.layers {
            xs = (xs.apply(&block.fc1)?.tanh()?.apply(&block.fc2)? + xs)?;
        }
        xs.apply(&self.norm)?
            .apply(&self.my_head)?
            .apply(&self.head)
    }
}

pub fn linear(seed: usize, dtype: DType) -> Linear {
    let weight = (fixed((6, 6), dtype, seed) * 0.5).unwrap();
    Linear::new(weight, Some(fixed(6, dtype, seed + 1)))
}

pub fn net_of(dtype: DType) -> Net {
    let block = |seed| Block {
        fc1: linear(seed, dtype),
        fc2: linear(seed + 2, dtype),
    };
    Net {
        model: Inner {
            layers: vec![block(1), block(11)],
        },
        norm: LayerNorm::new(fixed(6, dtype, 21), fixed(6, dtype, 22), 1e-5),
        my_head: linear(23, dtype),
        head: linear(25, dtype),
    }
}

pub fn net() -> Net {
    net_of(DType::F32)
}

pub fn config() -> LoraConfig {
    LoraConfig::new(2)
        .alpha(4.0)
        .target_modules(["fc1"])
        .seed(1)
}

pub fn input() -> Tensor {
    fixed((3, 6), DType::F32, 31)
}

/// Moves every variable, so that the adapter has an effect.
pub fn perturb<M: LoraModule>(model: &M, seed: usize) {
    for (index, var) in model.trainable_vars().iter().enumerate() {
        let step = (fixed(var.shape(), var.dtype(), seed + index) * 0.2).unwrap();
        let value = var.as_tensor().detach().copy().unwrap();
        var.set(&(value + step).unwrap()).unwrap();
    }
}

/// A model whose adapter has an effect.
pub fn tuned(config: &LoraConfig) -> LoraNet {
    let model = net().to_lora(config).unwrap();
    perturb(&model, 41);
    model
}

/// Fails unless the result is an error whose message holds all of these.
#[track_caller]
pub fn refused<T>(result: lora::Result<T>, parts: &[&str]) {
    let error = match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

/// Saves an adapter, then changes its configuration and its tensors.
pub fn changed(
    dir: &Path,
    model: &LoraNet,
    change_config: impl FnOnce(&mut serde_json::Value),
    change: impl FnOnce(&mut std::collections::HashMap<String, Tensor>),
) {
    model.save_adapter(dir).unwrap();
    let config = dir.join(peft::CONFIG_FILE);
    let mut json = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    change_config(&mut json);
    std::fs::write(&config, json.to_string()).unwrap();
    let weights = dir.join(peft::WEIGHTS_FILE);
    let mut tensors = candle_core::safetensors::load(&weights, &candle_core::Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, &weights).unwrap();
}

/// The variable at this path.
pub fn var<M: LoraModule>(model: &M, path: &str) -> Var {
    let params = model.named_params().into_iter();
    let mut params = params.filter(|param| param.path == path);
    let param = params.next().unwrap_or_else(|| panic!("no {path}"));
    assert!(param.is_trainable(), "{path} is frozen");
    Var::from_tensor(&param.tensor).unwrap()
}

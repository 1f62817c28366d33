//! Candle's fused functions: the copy of a forward pass calls those that pass the gradient. In a
//! function of the user's the gradient is cut, and the error says so.

use super::life::{Run, layer_norm, linear, live};
use candle_core::{DType, Result, Tensor};
use candle_nn::{LayerNorm, Linear};
use lora::{Error, LoraConfig, LoraModel, LoraModule};
use lora_tests::fixed;

#[derive(Clone, Debug, LoraModel)]
struct Fused {
    #[lora(rank)]
    fc1: Linear,
    norm: LayerNorm,
    #[lora(rank)]
    fc2: Linear,
}

#[lora::forward]
impl Run for Fused {
    fn run(&mut self) -> Result<Tensor> {
        let xs = fixed((3, 6), DType::F32, 9).apply(&self.fc1)?;
        let (weight, bias) = (self.norm.weight(), self.norm.bias().unwrap());
        let xs = candle_nn::ops::layer_norm(&xs, weight, bias, 1e-5)?;
        xs.apply(&self.fc2)
    }
}

#[lora::forward]
impl Fused {
    fn run_by_a_function(&self) -> Result<Tensor> {
        let xs = fixed((3, 6), DType::F32, 9).apply(&self.fc1)?;
        normalise(&xs, self.norm.weight(), self.norm.bias().unwrap())?.apply(&self.fc2)
    }
}

fn normalise(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    candle_nn::ops::layer_norm(xs, weight, bias, 1e-5)
}

fn fused() -> Fused {
    Fused {
        fc1: linear(6, 8, 1),
        norm: layer_norm(8, 3),
        fc2: linear(8, 2, 5),
    }
}

#[test]
fn a_method_that_calls_them_is_trained() {
    live(fused(), &LoraConfig::new(2));
}

#[test]
fn the_error_names_the_adapters_without_a_gradient() {
    let model = fused().to_lora(&LoraConfig::new(2)).unwrap();
    let loss = model.run_by_a_function().unwrap().sum_all().unwrap();
    let error = model.backward(&loss).unwrap_err();
    let Error::NoGradient { paths, trainable } = &error else {
        panic!("{error}");
    };
    assert_eq!(
        paths,
        &["fc1.lora_A.default.weight", "fc1.lora_B.default.weight"]
    );
    assert_eq!(*trainable, 4);
    let message = error.to_string();
    assert!(
        message.contains("2 of the model's 4 trainable parameters got no gradient"),
        "{message}"
    );
    assert!(
        message.contains("layer_norm") && message.contains("lora::ops"),
        "{message}"
    );
}

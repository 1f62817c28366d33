//! A block generic over its norm and its activation.

use super::life::{Run, adapted, layer_norm, linear, live, weight};
use candle_core::{DType, Result, Tensor};
use candle_nn::{Activation, LayerNorm, Linear, Module, RmsNorm};
use lora::{LoraConfig, LoraModel};
use lora_tests::fixed;

#[derive(Clone, Debug, LoraModel)]
struct Block<N, A> {
    norm: N,
    #[lora(rank)]
    fc1: Linear,
    act: A,
    fc2: Linear,
}

#[lora::forward]
impl<N: Module, A: Module> Module for Block<N, A> {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.norm.forward(xs)?.apply(&self.fc1)?;
        self.act.forward(&ys)?.apply(&self.fc2)? + xs
    }
}

#[lora::forward]
impl<N: Module, A: Module> Run for Block<N, A> {
    fn run(&mut self) -> Result<Tensor> {
        self.forward(&fixed((3, 6), DType::F32, 9))
    }
}

/// An activation of the user's own, with nothing to adapt.
#[derive(Clone, Copy, Debug, LoraModel)]
#[lora(plain)]
struct Square;

impl Module for Square {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.sqr()
    }
}

fn block<N, A>(norm: N, act: A) -> Block<N, A> {
    Block {
        norm,
        fc1: linear(6, 12, 1),
        act,
        fc2: linear(12, 6, 3),
    }
}

#[test]
fn any_norm_and_activation() {
    let rms_norm = RmsNorm::new(weight(6, 7), 1e-6);
    live(block(rms_norm.clone(), Square), &LoraConfig::new(2));
    live(block(rms_norm, Activation::Gelu), &LoraConfig::new(2));
    let model = live(
        block(layer_norm(6, 7), Activation::Silu),
        &LoraConfig::new(2),
    );
    assert_eq!(adapted(&model), ["fc1"]);
    let _: LoraBlock<LayerNorm, Activation> = model;
}

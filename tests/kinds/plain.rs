//! Code that is no model, called by one.

use super::{F32, linear, live};
use candle_core::{Device, Module, Result, Tensor};
use candle_nn::Linear;
use lora::LoraModel;
use lora_tests::fixed;
use std::sync::Arc;

/// Tables that several layers share. The type is no model: its method gets a gradient in place.
struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

#[lora::forward(plain)]
impl Rotary {
    fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        candle_nn::rotary_emb::rope(xs, &self.cos, &self.sin)
    }
}

#[lora::forward]
fn attend(xs: &Tensor) -> Result<Tensor> {
    candle_nn::ops::softmax_last_dim(xs)
}

#[derive(Clone, LoraModel)]
struct Rotated {
    #[lora(rank)]
    fc: Linear,
    #[lora(skip)]
    rotary: Arc<Rotary>,
}

#[lora::forward]
impl Module for Rotated {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.rotary.apply(&self.fc.forward(xs)?)?;
        attend(&ys)
    }
}

#[test]
fn gradients_pass_through_other_code() {
    let angles = Tensor::new(&[[0.3f32, 0.9], [0.6, 1.8]], &Device::Cpu).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let base = Rotated {
        fc: linear(4, 4, 1),
        rotary: Arc::new(Rotary { cos, sin }),
    };
    live("Rotary", &base, &fixed((1, 1, 2, 4), F32, 5));
}

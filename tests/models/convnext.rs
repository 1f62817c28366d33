//! A classifier of images in the manner of ConvNeXt.

use super::life::{Run, adapted, conv2d, layer_norm, linear, live, weight};
use candle_core::{DType, Result, Tensor};
use candle_nn::{Activation, Conv2d, Conv2dConfig, LayerNorm, Linear, Module};
use lora::{LoraConfig, LoraModel, LoraModule, TrainBias};
use lora_tests::fixed;

#[derive(Clone, Debug, LoraModel)]
struct Block {
    conv_dw: Conv2d,
    norm: LayerNorm,
    #[lora(rank)]
    fc1: Linear,
    act: Activation,
    #[lora(rank)]
    fc2: Linear,
    gamma: Tensor,
}

#[lora::forward]
impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = xs.apply(&self.conv_dw)?.permute((0, 2, 3, 1))?;
        let ys = ys.apply(&self.norm)?.apply(&self.fc1)?.apply(&self.act)?;
        let ys = ys.apply(&self.fc2)?.broadcast_mul(&self.gamma)?;
        xs + ys.permute((0, 3, 1, 2))?
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Classifier {
    stem: Conv2d,
    #[lora(name = "stages.0.blocks")]
    blocks: Vec<Block>,
    norm: LayerNorm,
    #[lora(trainable)]
    head: Linear,
}

#[lora::forward]
impl Run for Classifier {
    fn run(&mut self) -> Result<Tensor> {
        let mut xs = fixed((2, 3, 8, 8), DType::F32, 50).apply(&self.stem)?;
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        xs.mean((2, 3))?.apply(&self.norm)?.apply(&self.head)
    }
}

fn classifier() -> Classifier {
    let stem = Conv2dConfig {
        stride: 2,
        ..Default::default()
    };
    let depthwise = Conv2dConfig {
        padding: 3,
        groups: 6,
        ..Default::default()
    };
    let block = |seed: usize| Block {
        conv_dw: conv2d(6, 6, 7, depthwise, seed),
        norm: layer_norm(6, seed + 2),
        fc1: linear(6, 24, seed + 4),
        act: Activation::Gelu,
        fc2: linear(24, 6, seed + 6),
        gamma: weight(6, seed + 8),
    };
    Classifier {
        stem: conv2d(3, 6, 2, stem, 1),
        blocks: vec![block(10), block(20)],
        norm: layer_norm(6, 30),
        head: linear(6, 5, 32),
    }
}

#[test]
fn mlps_and_head() {
    let model = live(classifier(), &LoraConfig::new(2));
    let expected = [
        "stages.0.blocks.0.fc1",
        "stages.0.blocks.0.fc2",
        "stages.0.blocks.1.fc1",
        "stages.0.blocks.1.fc2",
    ];
    assert_eq!(adapted(&model), expected);
    let summary = model.summary();
    assert_eq!(summary.trainable, 4 * 2 * (6 + 24) + 5 * 6 + 5);
}

#[test]
fn convolutions_with_all_biases() {
    let config = LoraConfig::new(6)
        .target_modules(["conv_dw", "stem"])
        .train_bias(TrainBias::All);
    let model = live(classifier(), &config);
    assert_eq!(adapted(&model).len(), 3);
    let trained = model
        .named_params()
        .into_iter()
        .filter(|p| p.is_trainable());
    let biases = trained.filter(|p| p.name() == "bias").count();
    assert_eq!(biases, 1 + 2 * 4 + 1 + 1);
}

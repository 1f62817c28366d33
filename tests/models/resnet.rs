//! A residual network with batch norms and optional downsampling.

use super::life::{Run, adapted, conv2d, linear, live, weight};
use candle_core::{DType, ModuleT, Result, Tensor};
use candle_nn::{BatchNorm, Conv2d, Conv2dConfig, Linear};
use lora::{LoraConfig, LoraModel, LoraModule, TrainBias};
use lora_tests::fixed;

#[derive(Clone, Debug, LoraModel)]
struct Downsample {
    #[lora(name = "0")]
    conv: Conv2d,
    #[lora(name = "1")]
    norm: BatchNorm,
}

#[derive(Clone, Debug, LoraModel)]
struct Block {
    #[lora(rank)]
    conv1: Conv2d,
    bn1: BatchNorm,
    #[lora(rank)]
    conv2: Conv2d,
    bn2: BatchNorm,
    downsample: Option<Downsample>,
}

#[derive(Clone, Debug, LoraModel)]
struct ResNet {
    layer1: Vec<Block>,
    #[lora(trainable)]
    fc: Linear,
}

#[lora::forward]
impl ModuleT for Downsample {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        xs.apply(&self.conv)?.apply_t(&self.norm, train)
    }
}

#[lora::forward]
impl ModuleT for Block {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let ys = xs.apply(&self.conv1)?.apply_t(&self.bn1, train)?.relu()?;
        let ys = ys.apply(&self.conv2)?.apply_t(&self.bn2, train)?;
        let xs = match &self.downsample {
            Some(downsample) => xs.apply_t(downsample, train)?,
            None => xs.clone(),
        };
        (xs + ys)?.relu()
    }
}

#[lora::forward]
impl Run for ResNet {
    fn run(&mut self) -> Result<Tensor> {
        let mut xs = fixed((2, 3, 9, 9), DType::F32, 3);
        for block in &self.layer1 {
            xs = xs.apply_t(block, false)?;
        }
        xs.mean((2, 3))?.apply(&self.fc)
    }
}

fn batch_norm(size: usize, seed: usize) -> BatchNorm {
    let bias = fixed(size, DType::F32, seed + 1);
    let mean = fixed(size, DType::F32, seed + 2);
    BatchNorm::new(
        size,
        mean,
        weight(size, seed + 3),
        weight(size, seed),
        bias,
        1e-5,
    )
    .unwrap()
}

fn resnet() -> ResNet {
    let conv = |input, output, kernel: usize, stride, seed| {
        let config = Conv2dConfig {
            stride,
            padding: kernel / 2,
            ..Default::default()
        };
        conv2d(input, output, kernel, config, seed)
    };
    let block = |input, output, stride, seed| Block {
        conv1: conv(input, output, 3, stride, seed),
        bn1: batch_norm(output, seed + 2),
        conv2: conv(output, output, 3, 1, seed + 5),
        bn2: batch_norm(output, seed + 7),
        downsample: (stride > 1 || input != output).then(|| Downsample {
            conv: conv(input, output, 1, stride, seed + 9),
            norm: batch_norm(output, seed + 11),
        }),
    };
    ResNet {
        layer1: vec![block(3, 6, 2, 1), block(6, 6, 1, 30)],
        fc: linear(6, 4, 60),
    }
}

#[test]
fn convolutions() {
    let model = live(resnet(), &LoraConfig::new(3));
    assert_eq!(adapted(&model).len(), 4);
    assert!(model.layer1[1].downsample.is_none());
    let names: Vec<String> = model.named_params().into_iter().map(|p| p.path).collect();
    assert!(names.contains(&"layer1.0.downsample.1.running_mean".to_string()));
}

#[test]
fn downsampling_and_every_bias() {
    let config = LoraConfig::new(2)
        .target_modules(["downsample.0"])
        .train_bias(TrainBias::All);
    let model = live(resnet(), &config);
    assert_eq!(adapted(&model), ["layer1.0.downsample.0"]);
    assert!(
        model.layer1[0]
            .bn1
            .weight_and_bias()
            .unwrap()
            .1
            .is_variable()
    );
}

//! The training loop: what a step is, how a run goes on, what it writes, what it refuses.

mod exact;
mod files;
mod parallel;
mod refused;
mod steps;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::Linear;
use lora::data::BatchOptions;
use lora::optim::{AdamW, LoraPlus};
use lora::train::{Course, Every, Examples, Loss, Metrics, Source, TrainOptions};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{fixed, values};

#[derive(Clone, Debug, LoraModel)]
struct Net {
    fc1: Linear,
    fc2: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc1)?.tanh()?.apply(&self.fc2)
    }
}

/// A model of 6 inputs and 3 outputs, whose adapters drop this share of their inputs.
fn model(dropout: f64) -> LoraNet {
    let net = Net {
        fc1: Linear::new(fixed((8, 6), DType::F32, 1), None),
        fc2: Linear::new(fixed((3, 8), DType::F32, 2), Some(fixed(3, DType::F32, 3))),
    };
    let config = LoraConfig::new(2).target_modules(["fc1", "fc2"]);
    net.to_lora(&config.dropout(dropout).seed(0)).unwrap()
}

/// Inputs and the outputs to learn.
type Batch = (Tensor, Tensor);

const EXAMPLES: usize = 11;

fn batch(numbers: &[usize]) -> lora::Result<Batch> {
    let numbers = numbers.iter().map(|&number| number as u32);
    let numbers = Tensor::from_iter(numbers, &Device::Cpu)?;
    let xs = fixed((EXAMPLES, 6), DType::F32, 4).index_select(&numbers, 0)?;
    let ys = fixed((EXAMPLES, 3), DType::F32, 5).index_select(&numbers, 0)?;
    Ok((xs, ys))
}

fn batches(options: &BatchOptions) -> impl Source<Batch = Batch> + use<> {
    Examples::new([1; EXAMPLES], options, batch).unwrap()
}

fn loss(model: &LoraNet, (xs, ys): &Batch) -> lora::Result<Loss> {
    let loss = (model.forward(xs)? - ys)?.sqr()?.mean_all()?;
    Ok(Loss::over_examples(loss, xs.dim(0)?))
}

fn optimizer(model: &mut LoraNet) -> lora::Result<AdamW> {
    LoraPlus::new(2e-2, 4.0).adamw(model)
}

/// The loss of all examples.
fn evaluate(model: &LoraNet) -> lora::Result<Metrics> {
    let all: Vec<usize> = (0..EXAMPLES).collect();
    let loss = loss(model, &batch(&all)?)?.mean.to_scalar::<f32>()?;
    Ok(Metrics::from([("loss", f64::from(loss))]))
}

fn options() -> TrainOptions {
    let options = TrainOptions::epochs(3).accumulate(2).clip(0.5).warmup(0.2);
    let options = options.course(Course::Cosine).seed(3);
    options.evaluate(Every::Steps(2)).save(Every::Steps(2))
}

fn weights(model: &LoraNet) -> Vec<Vec<f64>> {
    let vars = model.trainable_vars();
    vars.iter().map(|var| values(var).unwrap()).collect()
}

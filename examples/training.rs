//! The training loop and the evaluation, for any LoRA model of images.

use crate::checkpoint::Input;
use crate::images::{Dataset, augment};
use crate::interrupt;
use crate::program::note;
use anyhow::{Context, Result, bail};
use candle_core::{D, Tensor};
use candle_nn::{Module, Optimizer, ParamsAdamW, loss::cross_entropy};
use indicatif::{ProgressBar, ProgressStyle};
use lora::ops::seed_dropout;
use lora::optim::AdamW;
use lora::{GradientCheck, LoraModule};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How to train.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Passes over the images.
    pub epochs: usize,
    /// Images a step.
    pub batch: usize,
    /// Highest learning rate: reached after a twentieth of the steps, it falls to 0 as a cosine.
    pub lr: f64,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
    /// How far images are shifted, turned and zoomed, see [`augment`].
    pub augment: f64,
    /// Seed of the order of the images, of their changes and of dropout.
    pub seed: u64,
}

/// What the training came to.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Mean loss of each epoch.
    pub losses: Vec<f64>,
    /// The check of the gradients on the first batch.
    pub gradients: GradientCheck,
    /// Number of steps.
    pub steps: usize,
    /// Median duration of a step.
    pub step: Duration,
    /// Duration of the whole.
    pub total: Duration,
}

/// Trains what is trainable of a model and leaves it in eval mode.
///
/// # Errors
/// If there is nothing to train on, a gradient is missing or wrong, the loss is no longer a number, or
/// somebody stops the program.
pub fn train<M: LoraModule + Module>(
    model: &mut M,
    data: &Dataset,
    input: &Input,
    recipe: &Recipe,
) -> Result<Trained> {
    if data.is_empty() || recipe.batch == 0 || recipe.epochs == 0 {
        bail!("nothing to train: there are no images, no epochs, or the batch size is 0");
    }
    let params = ParamsAdamW {
        lr: recipe.lr,
        weight_decay: recipe.weight_decay,
        ..Default::default()
    };
    let mut optimizer = AdamW::for_model(model, params)?;
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed);
    seed_dropout(recipe.seed);
    let mut order: Vec<usize> = (0..data.len()).collect();
    let steps = recipe.epochs * data.len().div_ceil(recipe.batch);
    let progress = Progress::new(recipe.epochs, steps);
    let start = Instant::now();
    let mut checked = None;
    let mut durations = Vec::new();
    let mut losses = Vec::new();

    model.train();
    for epoch in 0..recipe.epochs {
        order.shuffle(&mut rng);
        let mut sum = 0.0;
        for indices in order.chunks(recipe.batch) {
            interrupt::check()?;
            let start = Instant::now();
            optimizer.set_learning_rate(recipe.lr * schedule(durations.len(), steps));
            let batch = augment(&data.batch(indices)?, recipe.augment, &mut rng)?;
            let images = input.normalize(&batch.images)?;
            let loss = |model: &M| Ok(cross_entropy(&model.forward(&images)?, &batch.labels)?);
            if checked.is_none() {
                checked = Some(model.check_gradients(loss)?);
            }
            let loss: Tensor = loss(model)?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                bail!(
                    "the loss is {value} in epoch {}: try a lower --lr",
                    epoch + 1
                );
            }
            optimizer.step(&model.backward(&loss)?)?;
            sum += value * indices.len() as f64;
            durations.push(start.elapsed());
            progress.step(epoch, value, &durations);
        }
        losses.push(sum / data.len() as f64);
        progress.epoch(epoch, sum / data.len() as f64, &durations)?;
    }
    progress.finish();
    model.eval();
    let gradients = checked.context("nothing was trained")?;
    Ok(Trained {
        losses,
        gradients,
        steps,
        step: median(&durations),
        total: start.elapsed(),
    })
}

/// The share of the highest learning rate at a step.
fn schedule(step: usize, steps: usize) -> f64 {
    let warmup = (steps / 20).max(1);
    let rise = (step + 1) as f64 / warmup as f64;
    let fall = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
    rise.min(1.0) * fall
}

fn median(durations: &[Duration]) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The logits of all images, (images, classes).
///
/// # Errors
/// If the model does not fit the images, or somebody stops the program.
pub fn logits<M: Module>(model: &M, data: &Dataset, input: &Input) -> Result<Tensor> {
    let indices: Vec<usize> = (0..data.len()).collect();
    let mut parts = Vec::new();
    for indices in indices.chunks(64) {
        interrupt::check()?;
        let images = input.normalize(&data.batch(indices)?.images)?;
        let logits = model
            .forward(&images)
            .context("the model does not fit the images")?;
        parts.push(logits.detach());
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// The class with the highest logit, for each image.
///
/// # Errors
/// If the logits are not a matrix.
pub fn predictions(logits: &Tensor) -> Result<Vec<u32>> {
    Ok(logits.argmax(D::Minus1)?.to_vec1()?)
}

/// The share of predictions that are right.
pub fn accuracy(predictions: &[u32], labels: &[u32]) -> f64 {
    let pairs = predictions.iter().zip(labels);
    pairs.filter(|(a, b)| a == b).count() as f64 / labels.len().max(1) as f64
}

/// A progress bar on a terminal, a line an epoch elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    epochs: usize,
}

impl Progress {
    fn new(epochs: usize, steps: usize) -> Self {
        let style = "{msg}  {wide_bar} {pos}/{len} steps, {eta} left";
        // A bad template would only cost the looks.
        let style = ProgressStyle::with_template(style)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let terminal = std::io::stderr().is_terminal();
        let bar = terminal.then(|| ProgressBar::new(steps as u64).with_style(style));
        Self { bar, epochs }
    }

    fn step(&self, epoch: usize, loss: f64, durations: &[Duration]) {
        if let Some(bar) = &self.bar {
            bar.set_message(self.line(epoch, loss, durations));
            bar.inc(1);
        }
    }

    fn epoch(&self, epoch: usize, loss: f64, durations: &[Duration]) -> Result<()> {
        match self.bar {
            Some(_) => Ok(()),
            None => note(self.line(epoch, loss, durations)),
        }
    }

    fn line(&self, epoch: usize, loss: f64, durations: &[Duration]) -> String {
        let recent = &durations[durations.len().saturating_sub(20)..];
        let seconds = median(recent).as_secs_f64();
        let epochs = self.epochs;
        format!(
            "epoch {:>2}/{epochs}  loss {loss:.4}  {seconds:.3} s/step",
            epoch + 1
        )
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

//! The training loop and the evaluation, for any LoRA model of images.

use crate::checkpoint::Input;
use crate::images::{Batch, Dataset, augment};
use crate::interrupt;
use crate::steps::{Plan, Step, Trained, fit};
use anyhow::{Context, Result, bail};
use candle_core::{D, Tensor};
use candle_nn::{Module, loss::cross_entropy};
use lora::LoraModule;
use lora::ops::seed_dropout;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;

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
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed);
    seed_dropout(recipe.seed);
    let batches = data.len().div_ceil(recipe.batch);
    let plan = Plan {
        epochs: recipe.epochs,
        steps: recipe.epochs * batches,
        lr: recipe.lr,
        weight_decay: recipe.weight_decay,
        clip: None,
    };
    let mut order: Vec<usize> = (0..data.len()).collect();
    let mut done = 0;
    let next = || {
        if done == batches {
            done = 0;
            return Ok(None);
        }
        if done == 0 {
            order.shuffle(&mut rng);
        }
        let start = done * recipe.batch;
        let indices = &order[start..data.len().min(start + recipe.batch)];
        done += 1;
        let mut batch = augment(&data.batch(indices)?, recipe.augment, &mut rng)?;
        batch.images = input.normalize(&batch.images)?;
        Ok(Some(Step {
            weight: indices.len(),
            tokens: 0,
            batch,
        }))
    };
    let loss = |model: &M, batch: &Batch| {
        let logits = model.forward(&batch.images)?;
        Ok(cross_entropy(&logits, &batch.labels)?)
    };
    fit(model, &plan, next, loss)
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

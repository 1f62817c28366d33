//! Training and evaluation, for any LoRA model of images.

use crate::images::{Batch, Dataset, Input, augment};
use crate::interrupt;
use crate::steps::{self, Plan, data_error};
use anyhow::{Context, Result, bail};
use candle_core::{D, Tensor};
use candle_nn::{Module, ParamsAdamW, loss::cross_entropy};
use lora::LoraModule;
use lora::train::{Loss, Source, Trained};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    let plan = Plan {
        epochs: recipe.epochs,
        steps: recipe.epochs * data.len().div_ceil(recipe.batch),
        params: ParamsAdamW {
            lr: recipe.lr,
            weight_decay: recipe.weight_decay,
            ..Default::default()
        },
        clip: None,
        seed: recipe.seed,
    };
    let mut images = Images::new(data, input, recipe);
    let (trained, _) = steps::train(model, &plan, &mut images, |model, batch| {
        let loss = cross_entropy(&model.forward(&batch.images)?, &batch.labels)?;
        Ok(Loss::over_examples(loss, batch.labels.elem_count()))
    })?;
    Ok(trained)
}

/// The images of each epoch in random order, changed a little.
struct Images<'a> {
    data: &'a Dataset,
    input: &'a Input,
    batch: usize,
    augment: f64,
    rng: ChaCha8Rng,
    place: Place,
}

/// Where the images are.
#[derive(Clone, Serialize, Deserialize)]
struct Place {
    order: Vec<usize>,
    next: usize,
    /// How much was drawn, which is too large a number for JSON.
    drawn: String,
}

impl<'a> Images<'a> {
    fn new(data: &'a Dataset, input: &'a Input, recipe: &Recipe) -> Self {
        Self {
            data,
            input,
            batch: recipe.batch,
            augment: recipe.augment,
            rng: ChaCha8Rng::seed_from_u64(recipe.seed),
            place: Place {
                order: (0..data.len()).collect(),
                next: 0,
                drawn: String::new(),
            },
        }
    }

    fn prepared(&mut self, numbers: &[usize]) -> Result<Batch> {
        let mut batch = augment(&self.data.batch(numbers)?, self.augment, &mut self.rng)?;
        batch.images = self.input.normalize(&batch.images)?;
        Ok(batch)
    }
}

impl Source for Images<'_> {
    type Batch = Batch;

    fn next_batch(&mut self) -> lora::Result<Option<Batch>> {
        let Place { order, next, .. } = &mut self.place;
        if *next >= order.len() {
            *next = 0;
            return Ok(None);
        }
        if *next == 0 {
            order.shuffle(&mut self.rng);
        }
        let end = (*next + self.batch).min(order.len());
        let numbers = order[*next..end].to_vec();
        *next = end;
        Ok(Some(self.prepared(&numbers).map_err(data_error)?))
    }

    fn batches_per_epoch(&self) -> Option<usize> {
        Some(self.data.len().div_ceil(self.batch))
    }

    fn state(&self) -> lora::Result<Value> {
        let drawn = self.rng.get_word_pos().to_string();
        let place = Place {
            drawn,
            ..self.place.clone()
        };
        serde_json::to_value(place).map_err(data_error)
    }

    fn restore(&mut self, state: &Value) -> lora::Result<()> {
        let place: Place = serde_json::from_value(state.clone()).map_err(data_error)?;
        if place.order.len() != self.data.len() {
            let (then, now) = (place.order.len(), self.data.len());
            return Err(data_error(format!(
                "there were {then} images, now there are {now}"
            )));
        }
        self.rng
            .set_word_pos(place.drawn.parse().map_err(data_error)?);
        self.place = place;
        Ok(())
    }
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

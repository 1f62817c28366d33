//! Data that a model learns from, and that it is measured with.

#[cfg(feature = "text")]
mod classes;
mod language;
#[cfg(feature = "text")]
mod pair_loss;
#[cfg(feature = "text")]
mod pairs;

#[cfg(feature = "text")]
pub use classes::{TextBatch, TextClasses};
pub use language::Language;
#[cfg(feature = "text")]
pub use pair_loss::PairLoss;
#[cfg(feature = "text")]
pub use pairs::{PairBatch, TextPairs};

use super::source::Order;
use super::{Best, Loss, Metrics, Share, Source};
use crate::data::{BatchOptions, Batches};
use crate::{LoraModule, Result};
use serde_json::Value;

/// Data that a model learns from, or that it is measured with: batches, their loss, and what the model makes
/// of all of it.
///
/// [`Language`] is one for language models; of the feature `text`, `TextClasses` is one of texts with
/// classes and `TextPairs` one for sentence embeddings. One of your own joins a model of your own:
///
/// ```
/// use candle_core::{Device, Module, Tensor};
/// use candle_nn::{Linear, loss::mse};
/// use lora::data::BatchOptions;
/// use lora::optim::LoraPlus;
/// use lora::train::{Best, Dataset, Loss, Metrics, TrainOptions, Trainer};
/// use lora::{Lora, LoraConfig, LoraModel};
///
/// struct Points(Vec<[f32; 2]>);
///
/// impl Dataset for Points {
///     type Model = Lora<Linear>;
///     type Batch = Tensor;
///
///     fn lengths(&self) -> Vec<usize> {
///         vec![1; self.0.len()]
///     }
///
///     fn batch(&self, numbers: &[usize]) -> lora::Result<Tensor> {
///         let points: Vec<&[f32]> = numbers.iter().map(|&number| &self.0[number][..]).collect();
///         Ok(Tensor::new(points, &Device::Cpu)?)
///     }
///
///     fn loss(&self, model: &Lora<Linear>, batch: &Tensor) -> lora::Result<Loss> {
///         let (xs, ys) = (batch.narrow(1, 0, 1)?, batch.narrow(1, 1, 1)?);
///         let loss = mse(&model.forward(&xs)?, &ys)?;
///         Ok(Loss::over_examples(loss, batch.dim(0)?))
///     }
///
///     fn evaluate(&self, model: &Lora<Linear>, _: usize) -> lora::Result<Metrics> {
///         let all: Vec<usize> = (0..self.0.len()).collect();
///         let loss = self.loss(model, &self.batch(&all)?)?.mean.to_scalar::<f32>()?;
///         Ok(Metrics::from([("loss", loss.into())]))
///     }
///
///     fn best(&self) -> Best {
///         Best::Lowest("loss".into())
///     }
/// }
///
/// let points = Points((0..16).map(|x| [x as f32 / 8.0, x as f32 / 4.0]).collect());
/// let base = Linear::new(Tensor::zeros((1, 1), candle_core::DType::F32, &Device::Cpu)?, None);
/// let mut model = base.to_lora(&LoraConfig::new(1).seed(0))?;
/// let trained = Trainer::new(TrainOptions::epochs(20))
///     .evaluate(|model| points.evaluate(model, 16))
///     .run(
///         &mut model,
///         &mut points.batches(&BatchOptions::new(4))?,
///         |model| LoraPlus::new(5e-2, 4.0).adamw(model),
///         |model, batch| points.loss(model, batch),
///     )?;
/// assert!(trained.evaluations[19].metrics.get("loss") < Some(0.01));
/// # Ok::<(), lora::Error>(())
/// ```
pub trait Dataset {
    /// The model.
    type Model: LoraModule;
    /// Some of the data, as tensors.
    type Batch;

    /// The length of each example, such as its tokens; where all are alike, 1 each.
    fn lengths(&self) -> Vec<usize>;

    /// The examples of these numbers.
    ///
    /// # Errors
    /// If the tensors cannot be made.
    fn batch(&self, numbers: &[usize]) -> Result<Self::Batch>;

    /// The examples of these numbers for an epoch of training, from 0: those of [`batch`](Self::batch), unless
    /// training sees them changed at random. What changes them must depend on a seed, the epoch and an example's
    /// number alone: then a run that goes on, or is shared by several ranks, sees the same examples.
    ///
    /// # Errors
    /// If the tensors cannot be made.
    fn training_batch(&self, numbers: &[usize], _epoch: u64) -> Result<Self::Batch> {
        self.batch(numbers)
    }

    /// Whether the examples of these numbers together teach anything. Training leaves other batches out.
    fn teaches(&self, numbers: &[usize]) -> bool {
        !numbers.is_empty()
    }

    /// The loss of a batch, in training.
    ///
    /// # Errors
    /// If the model does not fit the data.
    fn loss(&self, model: &Self::Model, batch: &Self::Batch) -> Result<Loss>;

    /// How good a model in eval mode is on all of the data, computed by so many examples at once.
    ///
    /// # Errors
    /// If the model does not fit the data.
    fn evaluate(&self, model: &Self::Model, at_once: usize) -> Result<Metrics>;

    /// Which of the metrics says what is better.
    fn best(&self) -> Best;

    /// The batches to train on, epoch after epoch.
    ///
    /// # Errors
    /// Those of [`Batches::new`].
    fn batches(&self, options: &BatchOptions) -> Result<DatasetBatches<'_, Self::Batch>>
    where
        Self: Sized,
    {
        let mut chosen = Batches::new(self.lengths(), options)?;
        let first_epoch = std::iter::from_fn(|| chosen.next_batch());
        let per_epoch = first_epoch.filter(|numbers| self.teaches(numbers)).count();
        Ok(DatasetBatches {
            order: Order::new(self.lengths(), options)?,
            make: Box::new(|numbers, epoch| {
                let teaches = self.teaches(numbers);
                teaches
                    .then(|| self.training_batch(numbers, epoch))
                    .transpose()
            }),
            teaches: Box::new(|numbers| self.teaches(numbers)),
            per_epoch,
        })
    }
}

/// What is made of examples by their numbers in an epoch: `None` if they teach nothing.
type Make<'a, B> = Box<dyn Fn(&[usize], u64) -> Result<Option<B>> + 'a>;

type Teaches<'a> = Box<dyn Fn(&[usize]) -> bool + 'a>;

/// The batches of a [`Dataset`] that teach something.
pub struct DatasetBatches<'a, B> {
    order: Order,
    make: Make<'a, B>,
    teaches: Teaches<'a>,
    /// Those of the first epoch.
    per_epoch: usize,
}

impl<B> std::fmt::Debug for DatasetBatches<'_, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatasetBatches")
            .field("per_epoch", &self.per_epoch)
            .finish_non_exhaustive()
    }
}

impl<B> Source for DatasetBatches<'_, B> {
    type Batch = B;

    fn next_batch(&mut self) -> Result<Option<B>> {
        // A batch that teaches something is one for the only rank.
        Ok(self.next_share(Share::new(0, 1))?.flatten())
    }

    fn next_share(&mut self, share: Share) -> Result<Option<Option<B>>> {
        let epoch = self.order.batches.epoch();
        while let Some(numbers) = self.order.batches.next_batch() {
            if (self.teaches)(&numbers) {
                return (self.make)(&share.of(&numbers), epoch).map(Some);
            }
        }
        Ok(None)
    }

    fn batches_per_epoch(&self) -> Option<usize> {
        Some(self.per_epoch)
    }

    fn state(&self) -> Result<Value> {
        self.order.state()
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.order.restore(state)
    }
}

/// The numbers of examples, the longest first, so that little is padded where the order is free.
#[cfg(feature = "text")]
fn longest_first(lengths: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&number| std::cmp::Reverse(lengths[number]));
    order
}

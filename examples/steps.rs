//! The steps of a training by the library's loop, for any LoRA model and any data.

use crate::interrupt;
use crate::program::note;
use anyhow::{Result, anyhow, bail};
use candle_core::{DType, Tensor};
use candle_nn::ParamsAdamW;
use lora::data::BatchOptions;
use lora::optim::AdamW;
use lora::train::{
    Dataset, DatasetBatches, Ended, Event, Every, Loss, Progress, Source, TrainOptions,
    Trained as Run, Trainer,
};
use lora::{Error, LoraModule};
use serde_json::Value;

/// How to train.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Passes over the data.
    pub epochs: usize,
    /// Steps of all epochs together.
    pub steps: usize,
    /// Of AdamW. The highest learning rate is reached after a twentieth of the steps, and falls to 0 as a
    /// cosine.
    pub params: ParamsAdamW,
    /// The largest norm of a step's gradients.
    pub clip: Option<f64>,
    /// Seed of dropout.
    pub seed: u64,
}

/// What the training came to.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The library's account.
    pub run: Run,
    /// Tokens of all steps.
    pub tokens: usize,
    /// Tokens a second, of texts.
    pub tokens_a_second: Option<f64>,
}

/// Trains what is trainable of a model on a data set and leaves it in eval mode. `tokens` counts those of a
/// batch.
///
/// # Errors
/// Those of [`train`].
pub fn fit<D: Dataset>(
    model: &mut D::Model,
    plan: &Plan,
    data: &D,
    batches: &BatchOptions,
    tokens: impl Fn(&D::Batch) -> lora::Result<usize>,
) -> Result<Trained> {
    let mut source = Counted {
        batches: data.batches(batches)?,
        count: tokens,
        tokens: 0,
    };
    let (run, seconds) = train(model, plan, &mut source, |model, batch| {
        data.loss(model, batch)
    })?;
    let tokens = source.tokens;
    Ok(Trained {
        run,
        tokens,
        tokens_a_second: (tokens > 0).then(|| tokens as f64 / seconds),
    })
}

/// The tokens that a mask lets a model see.
///
/// # Errors
/// Those of candle.
pub fn seen(mask: &Tensor) -> lora::Result<usize> {
    Ok(mask.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? as usize)
}

/// Trains what is trainable of a model on batches of any source and leaves it in eval mode. Returns the
/// seconds of all steps, too.
///
/// # Errors
/// If there is nothing to train on, a gradient is missing or wrong, the loss is no longer a number, or
/// somebody stops the program.
pub fn train<M: LoraModule, S: Source>(
    model: &mut M,
    plan: &Plan,
    source: &mut S,
    loss: impl FnMut(&M, &S::Batch) -> lora::Result<Loss>,
) -> Result<(Run, f64)> {
    if plan.steps == 0 {
        bail!("nothing to train: there is no data, no epoch, or the batch size is 0");
    }
    let mut options = TrainOptions::epochs(plan.epochs).seed(plan.seed);
    options.clip = plan.clip;
    // As in the programs' other lines, a closed error output ends nothing here.
    let mut progress = Progress::lines_to(|line| drop(note(line)));
    let mut seconds = 0.0;
    let trained = Trainer::new(options.evaluate(Every::Never))
        .schedule(schedule)
        .stop_when(|| interrupt::requested().is_some())
        .watch(|event| {
            if let Event::Step(step) = event {
                seconds += step.seconds;
            }
            progress.tell(event);
            Ok(())
        })
        .run(
            model,
            source,
            |model| AdamW::for_model(model, plan.params.clone()),
            loss,
        );
    let trained = trained.map_err(|error| match error {
        Error::NotFinite(_) => anyhow!("{error}\ntry a lower --lr"),
        error => error.into(),
    })?;
    if trained.ended == Ended::Stopped {
        interrupt::check()?;
    }
    Ok((trained, seconds))
}

/// Batches whose tokens are counted.
struct Counted<'a, B, F> {
    batches: DatasetBatches<'a, B>,
    count: F,
    /// Tokens of all batches so far.
    tokens: usize,
}

impl<B, F: Fn(&B) -> lora::Result<usize>> Source for Counted<'_, B, F> {
    type Batch = B;

    fn next_batch(&mut self) -> lora::Result<Option<B>> {
        let batch = self.batches.next_batch()?;
        if let Some(batch) = &batch {
            self.tokens += (self.count)(batch)?;
        }
        Ok(batch)
    }

    fn batches_per_epoch(&self) -> Option<usize> {
        self.batches.batches_per_epoch()
    }

    fn state(&self) -> lora::Result<Value> {
        self.batches.state()
    }

    fn restore(&mut self, state: &Value) -> lora::Result<()> {
        self.batches.restore(state)
    }
}

/// An error of a program's data, as the library has it.
pub fn data_error(error: impl std::fmt::Display) -> Error {
    Error::Data(vec![format!("{error:#}")])
}

/// The share of the highest learning rate at a step.
fn schedule(step: usize, steps: usize) -> f64 {
    let warmup = (steps / 20).max(1);
    let rise = (step + 1) as f64 / warmup as f64;
    let done = step.min(steps) as f64 / steps as f64;
    rise.min(1.0) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

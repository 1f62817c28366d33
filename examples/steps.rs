//! The steps of a training by the library's loop, for any LoRA model and any data.

use crate::interrupt;
use crate::program::note;
use anyhow::{Result, anyhow, bail};
use candle_core::Tensor;
use candle_nn::ParamsAdamW;
use lora::optim::AdamW;
use lora::train::{
    Ended, Event, Every, Loss, Progress, Source, TrainOptions, Trained as Run, Trainer, Unit,
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
    /// Highest learning rate: reached after a twentieth of the steps, it falls to 0 as a cosine.
    pub lr: f64,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
    /// The largest norm of a step's gradients.
    pub clip: Option<f64>,
    /// What the loss is a mean over.
    pub unit: Unit,
    /// Seed of dropout.
    pub seed: u64,
}

/// What a step learns from.
#[derive(Clone, Debug)]
pub struct Step<B> {
    /// The batch.
    pub batch: B,
    /// How much it counts in the mean loss of an epoch: its examples, or its labels.
    pub weight: usize,
    /// Tokens of its texts.
    pub tokens: usize,
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

/// Trains what is trainable of a model and leaves it in eval mode. `next` gives the batches; with `None`
/// it ends an epoch.
///
/// # Errors
/// If there is nothing to train on, a gradient is missing or wrong, the loss is no longer a number, or
/// somebody stops the program.
pub fn fit<M: LoraModule, B>(
    model: &mut M,
    plan: &Plan,
    next: impl FnMut() -> Result<Option<Step<B>>>,
    loss: impl Fn(&M, &B) -> lora::Result<Tensor>,
) -> Result<Trained> {
    let mut source = Batches {
        next,
        per_epoch: plan.steps / plan.epochs.max(1),
        tokens: 0,
    };
    let (run, seconds) = train(model, plan, &mut source, |model, step: &Step<B>| {
        let mean = loss(model, &step.batch)?;
        Ok(match plan.unit {
            Unit::Tokens => Loss::over_tokens(mean, step.weight),
            _ => Loss::over_examples(mean, step.weight),
        })
    })?;
    let tokens = source.tokens;
    Ok(Trained {
        run,
        tokens,
        tokens_a_second: (tokens > 0).then(|| tokens as f64 / seconds),
    })
}

/// Trains as [`fit`] does, on batches of any source. Returns the seconds of all steps, too.
///
/// # Errors
/// Those of `fit`.
pub fn train<M: LoraModule, S: Source>(
    model: &mut M,
    plan: &Plan,
    source: &mut S,
    loss: impl FnMut(&M, &S::Batch) -> lora::Result<Loss>,
) -> Result<(Run, f64)> {
    if plan.steps == 0 {
        bail!("nothing to train: there is no data, no epoch, or the batch size is 0");
    }
    let params = ParamsAdamW {
        lr: plan.lr,
        weight_decay: plan.weight_decay,
        ..Default::default()
    };
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
        .run(model, source, |model| AdamW::for_model(model, params), loss);
    let trained = trained.map_err(|error| match error {
        Error::NotFinite(_) => anyhow!("{error}\ntry a lower --lr"),
        error => error.into(),
    })?;
    if trained.ended == Ended::Stopped {
        interrupt::check()?;
    }
    Ok((trained, seconds))
}

/// Batches that a program makes as they are asked for.
struct Batches<F> {
    next: F,
    per_epoch: usize,
    /// Tokens of all batches so far.
    tokens: usize,
}

impl<B, F: FnMut() -> Result<Option<Step<B>>>> Source for Batches<F> {
    type Batch = Step<B>;

    fn next_batch(&mut self) -> lora::Result<Option<Step<B>>> {
        let step = (self.next)().map_err(data_error)?;
        self.tokens += step.as_ref().map_or(0, |step| step.tokens);
        Ok(step)
    }

    fn batches_per_epoch(&self) -> Option<usize> {
        Some(self.per_epoch)
    }

    fn state(&self) -> lora::Result<Value> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _: &Value) -> lora::Result<()> {
        Err(data_error("this program begins each run anew"))
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

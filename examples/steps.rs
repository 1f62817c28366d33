//! The steps of a training, for any LoRA model and any data.

use crate::interrupt;
use crate::program::note;
use crate::results::thousands;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Tensor};
use candle_nn::{Optimizer, ParamsAdamW};
use indicatif::{ProgressBar, ProgressStyle};
use lora::optim::{AdamW, clip_grad_norm};
use lora::{GradientCheck, LoraModule};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Steps from one line of progress to the next where an epoch is longer.
const LINE_EVERY: usize = 50;

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
}

/// What a step learns from.
#[derive(Clone, Debug)]
pub struct Step<B> {
    /// The batch.
    pub batch: B,
    /// How much it counts in the mean loss of an epoch: its examples, or its labels.
    pub weight: usize,
    /// Tokens of its texts; 0 if there are none.
    pub tokens: usize,
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
    /// Tokens of all steps.
    pub tokens: usize,
    /// Duration of all steps, without the check of the gradients.
    pub stepping: Duration,
}

impl Trained {
    /// Tokens a second, of texts.
    pub fn tokens_a_second(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.tokens as f64 / self.stepping.as_secs_f64())
    }
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
    mut next: impl FnMut() -> Result<Option<Step<B>>>,
    loss: impl Fn(&M, &B) -> lora::Result<Tensor>,
) -> Result<Trained> {
    if plan.steps == 0 {
        bail!("nothing to train: there is no data, no epoch, or the batch size is 0");
    }
    let params = ParamsAdamW {
        lr: plan.lr,
        weight_decay: plan.weight_decay,
        ..Default::default()
    };
    let mut optimizer = AdamW::for_model(model, params)?;
    let mut progress = Progress::new(plan);
    let start = Instant::now();
    let (mut checked, mut losses) = (None, Vec::new());

    model.train();
    for epoch in 0..plan.epochs {
        let (mut sum, mut weights) = (0.0, 0);
        loop {
            interrupt::check()?;
            let mut start = Instant::now();
            let Some(step) = next()? else {
                break;
            };
            let rate = plan.lr * schedule(progress.durations.len(), plan.steps);
            optimizer.set_learning_rate(rate);
            if checked.is_none() {
                checked = Some(model.check_gradients(|model| loss(model, &step.batch))?);
                start = Instant::now();
            }
            let loss = loss(model, &step.batch)?;
            let value = f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
            if !value.is_finite() {
                bail!(
                    "the loss is {value} in epoch {}: try a lower --lr",
                    epoch + 1
                );
            }
            let mut grads = model.backward(&loss)?;
            if let Some(most) = plan.clip {
                clip_grad_norm(model, &mut grads, most)?;
            }
            optimizer.step(&grads)?;
            sum += value * step.weight as f64;
            weights += step.weight;
            progress.step(epoch, value, start.elapsed(), step.tokens)?;
        }
        losses.push(sum / weights.max(1) as f64);
        progress.epoch(epoch, sum / weights.max(1) as f64)?;
    }
    progress.finish();
    model.eval();
    Ok(Trained {
        losses,
        gradients: checked.context("nothing was trained")?,
        steps: progress.durations.len(),
        step: median(&progress.durations),
        total: start.elapsed(),
        tokens: progress.tokens.iter().sum(),
        stepping: progress.durations.iter().sum(),
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

/// A progress bar on a terminal; elsewhere lines, at the end of each epoch and within long ones.
struct Progress {
    bar: Option<ProgressBar>,
    epochs: usize,
    steps: usize,
    /// Of the steps so far.
    durations: Vec<Duration>,
    /// Of the steps so far.
    tokens: Vec<usize>,
}

impl Progress {
    fn new(plan: &Plan) -> Self {
        let style = "{msg}  {wide_bar} {pos}/{len} steps, {eta} left";
        // A bad template would only cost the looks.
        let style = ProgressStyle::with_template(style)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let terminal = std::io::stderr().is_terminal();
        let bar = terminal.then(|| ProgressBar::new(plan.steps as u64).with_style(style));
        Self {
            bar,
            epochs: plan.epochs,
            steps: plan.steps,
            durations: Vec::new(),
            tokens: Vec::new(),
        }
    }

    fn step(&mut self, epoch: usize, loss: f64, duration: Duration, tokens: usize) -> Result<()> {
        self.durations.push(duration);
        self.tokens.push(tokens);
        let done = self.durations.len();
        let is_long = self.steps / self.epochs.max(1) >= 2 * LINE_EVERY;
        match &self.bar {
            Some(bar) => {
                bar.set_message(self.line(epoch, loss));
                bar.inc(1);
                Ok(())
            }
            None if is_long && done.is_multiple_of(LINE_EVERY) => note(format_args!(
                "{}  {done}/{} steps",
                self.line(epoch, loss),
                self.steps
            )),
            None => Ok(()),
        }
    }

    fn epoch(&self, epoch: usize, loss: f64) -> Result<()> {
        match self.bar {
            Some(_) => Ok(()),
            None => note(self.line(epoch, loss)),
        }
    }

    fn line(&self, epoch: usize, loss: f64) -> String {
        let recent = self.durations.len().saturating_sub(20);
        let durations = &self.durations[recent..];
        let seconds = median(durations).as_secs_f64();
        let epochs = self.epochs;
        let mut line = format!(
            "epoch {:>2}/{epochs}  loss {loss:.4}  {seconds:.3} s/step",
            epoch + 1
        );
        let tokens: usize = self.tokens[recent..].iter().sum();
        if tokens > 0 {
            let total: Duration = durations.iter().sum();
            let rate = tokens as f64 / total.as_secs_f64();
            line.push_str(&format!("  {} tokens/s", thousands(rate as usize)));
        }
        line
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

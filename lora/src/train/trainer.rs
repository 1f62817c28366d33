//! What a run is given.

use super::run::Run;
use super::{Event, Length, Loss, Metrics, Parallel, Plan, Source, TrainOptions, Trained};
use crate::optim::AsAdamW;
use crate::{Error, LoraModule, Result};
use candle_core::Tensor;
use std::fmt;
use std::path::PathBuf;

type Evaluate<'a, M> = Box<dyn FnMut(&M) -> Result<Metrics> + 'a>;
type Watch<'a> = Box<dyn FnMut(&Event<'_>) -> Result<()> + 'a>;
type Schedule<'a> = Box<dyn Fn(usize, usize) -> f64 + 'a>;
type Stop<'a> = Box<dyn Fn() -> bool + 'a>;

/// A training run: the [module](super) shows one.
///
/// With an [`output`](Self::output), a run that is stopped or killed goes on exactly there:
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Linear;
/// use lora::data::BatchOptions;
/// use lora::optim::LoraPlus;
/// use lora::train::{Ended, Every, Examples, Metrics, TrainOptions, Trainer};
/// use lora::{LoraConfig, LoraModel, LoraModule};
/// use std::cell::Cell;
///
/// let dir = tempfile::tempdir().unwrap();
/// let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// let train = |stop_after: usize| {
///     let base = Linear::new(weight.clone(), None);
///     let mut model = base.to_lora(&LoraConfig::new(2).dropout(0.1).seed(0))?;
///     let mut batches = Examples::new([1; 5], &BatchOptions::new(2), |numbers| {
///         let values: Vec<f32> = numbers.iter().map(|&number| number as f32).collect();
///         Ok(Tensor::new(values, &Device::Cpu)?.unsqueeze(1)?.broadcast_as((numbers.len(), 3))?)
///     })?;
///     let steps = Cell::new(0);
///     Trainer::new(TrainOptions::epochs(4).evaluate(Every::Steps(2)))
///         .output(dir.path())
///         .resume(true)
///         .evaluate(|model: &lora::Lora<Linear>| {
///             let ys = model.forward(&Tensor::ones((1, 3), DType::F32, &Device::Cpu)?)?;
///             Ok(Metrics::from([("loss", ys.sqr()?.mean_all()?.to_scalar::<f32>()?.into())]))
///         })
///         .stop_when(|| {
///             steps.set(steps.get() + 1);
///             steps.get() == stop_after
///         })
///         .run(
///             &mut model,
///             &mut batches,
///             |model| LoraPlus::new(1e-2, 4.0).adamw(model),
///             |model, xs| Ok(model.forward(xs)?.sqr()?.mean_all()?),
///         )
/// };
/// let first = train(5)?;
/// assert_eq!((first.ended, first.steps), (Ended::Stopped, 5));
/// let second = train(0)?; // as in another process
/// assert_eq!((second.ended, second.steps), (Ended::Finished, 12));
/// assert!(second.best.unwrap().metrics.get("loss") < Some(9.0));
/// # Ok::<(), lora::Error>(())
/// ```
pub struct Trainer<'a, M> {
    pub(super) options: TrainOptions,
    pub(super) evaluate: Option<Evaluate<'a, M>>,
    pub(super) watchers: Vec<Watch<'a>>,
    schedule: Option<Schedule<'a>>,
    stop: Option<Stop<'a>>,
    pub(super) output: Option<PathBuf>,
    pub(super) resume: bool,
    pub(super) parallel: Parallel,
    #[cfg(feature = "train-ui")]
    pub(super) tensorboard: bool,
}

impl<M> fmt::Debug for Trainer<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trainer")
            .field("options", &self.options)
            .field("output", &self.output)
            .field("resume", &self.resume)
            .field("parallel", &self.parallel)
            .finish_non_exhaustive()
    }
}

impl<'a, M: LoraModule> Trainer<'a, M> {
    /// A run with these options, which writes nothing.
    pub fn new(options: TrainOptions) -> Self {
        Self {
            options,
            evaluate: None,
            watchers: Vec::new(),
            schedule: None,
            stop: None,
            output: None,
            resume: false,
            parallel: Parallel::alone(),
            #[cfg(feature = "train-ui")]
            tensorboard: false,
        }
    }

    /// Writes into this folder, which is made:
    ///
    /// | file | what |
    /// |---|---|
    /// | `checkpoints/step-00000012.safetensors` | all that the run needs to go on behind this step |
    /// | `checkpoints/best.safetensors` | the same, of the best evaluation |
    /// | `log.jsonl` | a line for each step: `step`, `epoch`, `loss`, `lr`, `grad_norm`, `count`, `unit`, `seconds`; for each evaluation: `step`, `epoch`, `metrics` |
    /// | `curves.svg` | their curves, at the end |
    /// | `events.out.tfevents.lora` | the log for TensorBoard, if `tensorboard` of the feature `train-ui` asks for it |
    ///
    /// A checkpoint is also a file for [`load_state`](crate::optim::load_state). The adapter for other
    /// programs is the caller's to save: [`save_adapter`](LoraModule::save_adapter).
    pub fn output(mut self, dir: impl Into<PathBuf>) -> Self {
        self.output = Some(dir.into());
        self
    }

    /// Goes on from the output's last checkpoint, or begins where there is none. Give the same base model,
    /// data, options and optimiser as before.
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Evaluates the model so, in eval mode, as often as [`TrainOptions::evaluate`] says, and at the end.
    /// What the evaluation draws does not change what training draws.
    pub fn evaluate(mut self, evaluate: impl FnMut(&M) -> Result<Metrics> + 'a) -> Self {
        self.evaluate = Some(Box::new(evaluate));
        self
    }

    /// Tells what happens, in addition to who is told already. An error ends the run.
    pub fn watch(mut self, watch: impl FnMut(&Event<'_>) -> Result<()> + 'a) -> Self {
        self.watchers.push(Box::new(watch));
        self
    }

    /// Shows the progress on the error output: a bar on a terminal, lines elsewhere.
    #[cfg(feature = "train-ui")]
    pub fn progress(self) -> Self {
        let mut progress = super::Progress::new();
        self.watch(move |event| {
            progress.tell(event);
            Ok(())
        })
    }

    /// Writes the log as an event file for TensorBoard, too: `events.out.tfevents.lora` in the output.
    #[cfg(feature = "train-ui")]
    pub fn tensorboard(mut self, write: bool) -> Self {
        self.tensorboard = write;
        self
    }

    /// Sets the factor of the learning rate at a step, which counts from 0, of so many; in place of
    /// [`TrainOptions::course`].
    pub fn schedule(mut self, factor: impl Fn(usize, usize) -> f64 + 'a) -> Self {
        self.schedule = Some(Box::new(factor));
        self
    }

    /// Asks after each step whether to stop. If so, the run writes a checkpoint and ends.
    pub fn stop_when(mut self, stop: impl Fn() -> bool + 'a) -> Self {
        self.stop = Some(Box::new(stop));
        self
    }

    /// Trains together with other ranks, which make the same calls. See
    /// [several ranks](super#several-ranks).
    pub fn parallel(mut self, parallel: &Parallel) -> Self {
        self.parallel = parallel.clone();
        self
    }

    /// Trains what is trainable of the model, which is in eval mode afterwards.
    ///
    /// `optimizer` makes the optimiser for the model as the run begins. `loss` computes the loss of a
    /// batch: a tensor of one number, or a [`Loss`] with the number of examples or tokens that the number
    /// is a mean over.
    ///
    /// # Errors
    /// [`Error::Training`] for options, an output or a checkpoint that do not fit. A model without
    /// anything to train, [`Error::NoGradient`], [`Error::WrongGradient`], [`Error::NotFinite`] with the
    /// number of the step. Those of the batches, the loss, the optimiser, the evaluation, the watchers.
    /// The checkpoints that were written before an error stay, and the run can go on from the last. An
    /// error of one rank is one of all.
    pub fn run<S, O, L>(
        &mut self,
        model: &mut M,
        source: &mut S,
        optimizer: impl FnOnce(&mut M) -> Result<O>,
        loss: impl FnMut(&M, &S::Batch) -> Result<L>,
    ) -> Result<Trained>
    where
        S: Source,
        O: AsAdamW,
        L: Into<Loss>,
    {
        let parallel = self.parallel.clone();
        let run = self.begin(model, source, optimizer, loss);
        parallel.or_stop(run.and_then(Run::go))
    }

    /// How much there is to do.
    pub(super) fn plan(&self, batches: Option<usize>) -> Result<Plan> {
        let options = &self.options;
        let mut problems = options.problems();
        let (steps, epochs) = match options.length {
            Length::Steps(steps) => (Some(steps), None),
            Length::Epochs(epochs) => {
                let steps = batches.map(|batches| batches.div_ceil(options.accumulate.max(1)));
                (
                    steps.and_then(|steps| steps.checked_mul(epochs)),
                    Some(epochs),
                )
            }
        };
        if steps.is_none() && (self.schedule.is_some() || options.needs_length()) {
            problems.push(
                "how many batches an epoch has is not known before, so that the learning rate has no \
                 course: say TrainOptions::steps, or course(Course::Constant) without warm-up"
                    .into(),
            );
        }
        if batches == Some(0) {
            problems.push("there is no batch to train on".into());
        }
        let mut needs = |what: &str, has: bool, fix: &str| {
            if !has {
                problems.push(format!("{what} needs {fix}"));
            }
        };
        let evaluates = self.evaluate.is_some();
        if options.patience.is_some() {
            needs(
                "`patience`",
                evaluates,
                "an evaluation: call Trainer::evaluate",
            );
        }
        if options.end_with_best {
            needs(
                "`end_with_best`",
                evaluates,
                "an evaluation: call Trainer::evaluate",
            );
            let has_output = self.output.is_some();
            needs(
                "`end_with_best`",
                has_output,
                "checkpoints: call Trainer::output",
            );
        }
        if self.resume {
            let has_output = self.output.is_some();
            needs(
                "`resume`",
                has_output,
                "the folder of the earlier run: call Trainer::output",
            );
        }
        match problems.is_empty() {
            true => Ok(Plan {
                steps,
                epochs,
                done: 0,
            }),
            false => Err(Error::Training(problems)),
        }
    }

    /// The factor of the learning rate at a step, which counts from 0.
    pub(super) fn factor(&self, step: usize, steps: Option<usize>) -> f64 {
        match (&self.schedule, steps) {
            (Some(factor), Some(steps)) => factor(step, steps),
            _ => self.options.factor(step, steps),
        }
    }

    /// Whether any rank is asked to stop.
    pub(super) fn must_stop(&self) -> Result<bool> {
        let of_rank = self.stop.as_ref().is_some_and(|stop| stop());
        self.parallel.any(of_rank)
    }

    pub(super) fn tell(&mut self, event: &Event<'_>) -> Result<()> {
        let mut watchers = self.watchers.iter_mut();
        match self.parallel.is_first() {
            true => watchers.try_for_each(|watch| watch(event)),
            false => Ok(()),
        }
    }
}

/// The loss of a batch as a tensor, for the check of gradients.
pub(super) fn mean<L: Into<Loss>>(loss: Result<L>) -> Result<Tensor> {
    Ok(loss?.into().mean)
}

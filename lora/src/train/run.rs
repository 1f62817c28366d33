//! The loop.

use super::checkpoint::{Checkpoints, write};
use super::gradients::{Gradients, Sum, check_unit};
use super::log::Log;
use super::loss::Mean;
use super::state::State;
use super::trained::median;
use super::trainer::mean;
use super::{
    Ended, Event, Every, Length, Loss, Plan, Source, Step, Trained, Trainer, Unit, curves,
};
use crate::optim::{AsAdamW, clip_grad_norm, load_model};
use crate::{Error, GradientCheck, LoraModule, Result, ops};
use candle_nn::Optimizer;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A run on its way.
pub(super) struct Run<'r, 'a, M, S, O, F> {
    pub trainer: &'r mut Trainer<'a, M>,
    plan: Plan,
    model: &'r mut M,
    source: &'r mut S,
    pub optimizer: O,
    loss: F,
    pub state: State,
    pub notes: Vec<String>,
    pub log: Option<Log>,
    /// The output and its checkpoints.
    pub files: Option<(PathBuf, Checkpoints)>,
    /// The last checkpoint.
    pub checkpoint: Option<PathBuf>,
    gradients: Option<GradientCheck>,
    durations: Vec<Duration>,
}

impl<'r, 'a, M, S, O, L, F> Run<'r, 'a, M, S, O, F>
where
    M: LoraModule,
    S: Source,
    O: AsAdamW,
    L: Into<Loss>,
    F: FnMut(&M, &S::Batch) -> Result<L>,
{
    pub fn new(
        trainer: &'r mut Trainer<'a, M>,
        mut plan: Plan,
        model: &'r mut M,
        source: &'r mut S,
        optimizer: O,
        loss: F,
        state: State,
    ) -> Self {
        plan.done = state.step;
        Self {
            trainer,
            plan,
            model,
            source,
            optimizer,
            loss,
            state,
            notes: Vec::new(),
            log: None,
            files: None,
            checkpoint: None,
            gradients: None,
            durations: Vec::new(),
        }
    }

    pub fn go(mut self) -> Result<Trained> {
        let start = Instant::now();
        self.trainer.tell(&Event::Begin(&self.plan))?;
        for note in std::mem::take(&mut self.notes) {
            self.trainer.tell(&Event::Note(&note))?;
            crate::error::warn(&note);
        }
        self.model.train();
        let ended = self.steps();
        self.model.eval();
        let ended = ended?;
        if ended != Ended::Stopped && self.trainer.options.end_with_best {
            self.take_best()?;
        }
        if let Some((output, _)) = &self.files {
            curves::draw(output)?;
        }
        let trained = self.trained(ended, start.elapsed());
        self.trainer.tell(&Event::End(&trained))?;
        Ok(trained)
    }

    fn steps(&mut self) -> Result<Ended> {
        let mut saved = self.checkpoint.is_some();
        loop {
            if let Some(ended) = self.over() {
                if self.state.evaluations.last().map(|last| last.step) != Some(self.state.step) {
                    self.evaluate()?;
                    saved = false;
                }
                if !saved {
                    self.save()?;
                }
                return Ok(ended);
            }
            let before = self.state.step;
            let epoch_over = self.step()?;
            let stepped = self.state.step > before;
            if epoch_over {
                self.end_epoch()?;
            }
            let options = &self.trainer.options;
            let due = |every: Every| match every {
                Every::Epoch => epoch_over,
                Every::Steps(steps) => stepped && self.state.step.is_multiple_of(steps),
                Every::Never => false,
            };
            let (evaluate, save) = (due(options.evaluate), due(options.save));
            if evaluate {
                self.evaluate()?;
            }
            let stop = stepped && self.trainer.must_stop()?;
            saved = save || stop;
            if saved {
                self.save()?;
            }
            if stop {
                return Ok(Ended::Stopped);
            }
        }
    }

    /// Why no further step is to be taken.
    fn over(&self) -> Option<Ended> {
        let State { step, epoch, .. } = self.state;
        let options = &self.trainer.options;
        let finished = match options.length {
            Length::Steps(steps) => step >= steps,
            Length::Epochs(epochs) => epoch >= epochs,
        };
        let out_of_patience = |patience| self.state.stale() >= patience;
        match options.patience.is_some_and(out_of_patience) {
            _ if finished => Some(Ended::Finished),
            true => Some(Ended::Early),
            false => None,
        }
    }

    /// One step, if the epoch has a batch left. True if the epoch is over.
    fn step(&mut self) -> Result<bool> {
        let start = Instant::now();
        let number = self.state.step + 1;
        let seed = self.trainer.options.seed;
        self.trainer.parallel.seed_step(seed, number);
        let (batches, epoch_over) = self.batches().map_err(|error| at_step(error, number))?;
        let Some(Gradients {
            mut grads,
            loss,
            unit,
        }) = batches
        else {
            return Ok(true);
        };
        let clip = self.trainer.options.clip;
        let norm = clip.map(|clip| clip_grad_norm(self.model, &mut grads, clip));
        let grad_norm = norm.transpose()?;
        let factor = self.trainer.factor(number - 1, self.plan.steps);
        self.optimizer.as_adamw_mut().set_lr_factor(factor);
        let stepped = self.optimizer.take_step(&grads);
        stepped.map_err(|error| at_step(error, number))?;

        let duration = start.elapsed();
        let step = Step {
            step: number,
            epoch: self.state.epoch,
            loss: loss.get(),
            lr: self.optimizer.as_adamw().learning_rate(),
            grad_norm,
            count: loss.count(),
            unit,
            seconds: duration.as_secs_f64(),
        };
        self.durations.push(duration);
        self.state.step = number;
        self.state.seconds += duration.as_secs_f64();
        self.state.epoch_loss.add(step.loss, step.count);
        if let Some(log) = &mut self.log {
            log.step(&step)?;
        }
        self.trainer.tell(&Event::Step(&step))?;
        Ok(epoch_over)
    }

    /// The gradients of the batches of a step: none if the epoch has no batch left. And whether the epoch
    /// is over.
    fn batches(&mut self) -> Result<(Option<Gradients>, bool)> {
        let parallel = self.trainer.parallel.clone();
        let wanted = self.trainer.options.accumulate;
        let (mut sum, mut seen) = (Sum::default(), 0);
        while seen < wanted
            && let Some(share) = self.source.next_share(parallel.share())?
        {
            seen += 1;
            let Some(batch) = share else {
                continue;
            };
            if self.state.step == 0 && sum.is_empty() {
                self.check_gradients(&batch)?;
            }
            let loss: Loss = (self.loss)(self.model, &batch)?.into();
            check_unit(&loss, &parallel)?;
            sum.unit = loss.unit;
            // Another rank's share of the batch may have something to learn.
            if loss.count == 0 && parallel.ranks() > 1 {
                continue;
            }
            self.refuse_nothing(loss.count, loss.unit)?;
            let grads = self.model.backward(&loss.mean)?;
            sum.add(&loss, grads, wanted)?;
        }
        if seen == 0 {
            self.refuse_empty_epoch()?;
            return Ok((None, true));
        }
        let gradients = sum.mean(self.model, &parallel)?;
        self.refuse_nothing(gradients.loss.count(), gradients.unit)?;
        Ok((Some(gradients), seen < wanted))
    }

    /// A batch without anything to learn has no mean.
    fn refuse_nothing(&self, count: usize, unit: Unit) -> Result<()> {
        if count > 0 {
            return Ok(());
        }
        Err(Error::Training(vec![format!(
            "a batch of step {} has nothing to learn, 0 {}: leave such batches out of the data",
            self.state.step + 1,
            unit.name()
        )]))
    }

    /// An epoch without a batch would be followed by others, for ever.
    fn refuse_empty_epoch(&self) -> Result<()> {
        match self.state.epoch_loss.count() {
            0 => Err(Error::Training(vec![format!(
                "epoch {} has no batch: the source gave none",
                self.state.epoch + 1
            )])),
            _ => Ok(()),
        }
    }

    fn check_gradients(&mut self, batch: &S::Batch) -> Result<()> {
        if !self.trainer.options.check_gradients {
            return Ok(());
        }
        let loss = &mut self.loss;
        let check = self
            .model
            .check_gradients(|model| mean(loss(model, batch)))?;
        self.trainer.tell(&Event::Checked(&check))?;
        self.gradients = Some(check);
        Ok(())
    }

    fn end_epoch(&mut self) -> Result<()> {
        let (epoch, loss) = (self.state.epoch, self.state.epoch_loss.get());
        self.state.losses.push(loss);
        self.state.epoch_loss = Mean::default();
        self.state.epoch += 1;
        self.trainer.tell(&Event::Epoch { epoch, loss })
    }

    fn evaluate(&mut self) -> Result<()> {
        let Some(evaluate) = &mut self.trainer.evaluate else {
            return Ok(());
        };
        let (options, step) = (&self.trainer.options, self.state.step);
        let metrics = self.trainer.parallel.of_first(|| {
            let dropout = ops::dropout_state();
            self.model.eval();
            let metrics = evaluate(self.model);
            self.model.train();
            ops::seed_dropout(dropout);
            let metrics = metrics?;
            metrics.check(options, step)?;
            Ok(metrics)
        })?;
        let best = self.state.evaluated(metrics);
        let Some(evaluation) = self.state.evaluations.last() else {
            return Ok(());
        };
        if let Some(log) = &mut self.log {
            log.evaluation(evaluation)?;
        }
        self.trainer.tell(&Event::Evaluated { evaluation, best })?;
        if let Some((_, checkpoints)) = self.files.as_ref().filter(|_| best) {
            self.state.source = self.source.state()?;
            checkpoints.save_best(self.model, &self.optimizer, &self.state)?;
        }
        Ok(())
    }

    /// Writes a checkpoint, if there is an output.
    fn save(&mut self) -> Result<()> {
        self.check_same()?;
        let Some((_, checkpoints)) = &self.files else {
            return Ok(());
        };
        self.state.source = self.source.state()?;
        if let Some(log) = &self.log {
            log.sync()?;
        }
        let path = checkpoints.save(self.model, &self.optimizer, &self.state)?;
        self.trainer.tell(&Event::Saved(&path))?;
        self.checkpoint = Some(path);
        Ok(())
    }

    fn take_best(&mut self) -> Result<()> {
        let best = self.files.as_ref().map(|(_, files)| files.best());
        let best = self.trainer.parallel.file(&best.unwrap_or_default())?;
        load_model(best.path(), self.model)?;
        self.model.eval();
        Ok(())
    }

    /// Refuses to go on if the ranks have come apart.
    pub fn check_same(&self) -> Result<()> {
        let parallel = &self.trainer.parallel;
        parallel.check_same(self.model, self.state.step)
    }

    /// A file of the run as it is, which another rank can go on from.
    pub fn write(&mut self, path: &Path) -> Result<()> {
        self.state.source = self.source.state()?;
        write(path, self.model, &self.optimizer, &self.state)
    }

    fn trained(&self, ended: Ended, total: Duration) -> Trained {
        let state = &self.state;
        let mut losses = state.losses.clone();
        if state.epoch_loss.count() > 0 {
            losses.push(state.epoch_loss.get());
        }
        Trained {
            ended,
            steps: state.step,
            losses,
            gradients: self.gradients.clone(),
            evaluations: state.evaluations.clone(),
            best: state
                .best
                .and_then(|best| state.evaluations.get(best).cloned()),
            checkpoint: self.checkpoint.clone(),
            step: median(&self.durations),
            total,
        }
    }
}

/// Says at which step a number was not finite.
fn at_step(error: Error, step: usize) -> Error {
    match error {
        Error::NotFinite(what) => Error::NotFinite(format!("{what} at step {step}")),
        error => error,
    }
}

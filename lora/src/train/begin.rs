//! How a run begins: anew, from a checkpoint, or from the rank that has begun.

use super::checkpoint::Checkpoints;
use super::log::{LOG, Log};
use super::run::Run;
use super::state::State;
use super::{Loss, Plan, Source, Trainer};
use crate::optim::{AsAdamW, load_state};
use crate::{Error, LoraModule, Result, seed_dropout};
use std::path::Path;

impl<'a, M: LoraModule> Trainer<'a, M> {
    /// A run of which no step is taken yet. All ranks have the same adapters then.
    pub(super) fn begin<'r, S, O, L, F>(
        &'r mut self,
        model: &'r mut M,
        source: &'r mut S,
        optimizer: impl FnOnce(&mut M) -> Result<O>,
        loss: F,
    ) -> Result<Run<'r, 'a, M, S, O, F>>
    where
        S: Source,
        O: AsAdamW,
        L: Into<Loss>,
        F: FnMut(&M, &S::Batch) -> Result<L>,
    {
        let plan = self.plan(source.batches_per_epoch())?;
        if !self.parallel.is_first() {
            let run = self.join(plan, model, source, optimizer, loss)?;
            run.check_same()?;
            return Ok(run);
        }
        let parallel = self.parallel.clone();
        let mut run = self.begin_first(plan, model, source, optimizer, loss)?;
        if parallel.ranks() > 1 {
            let dir = tempfile::tempdir();
            let dir = dir.map_err(|error| Error::file(std::env::temp_dir(), error))?;
            let path = dir.path().join("start.safetensors");
            run.write(&path)?;
            parallel.file(&path)?;
            run.check_same()?;
        }
        Ok(run)
    }

    /// The run of rank 0, with the output's last checkpoint if there is one.
    fn begin_first<'r, S, O, L, F>(
        &'r mut self,
        plan: Plan,
        model: &'r mut M,
        source: &'r mut S,
        optimizer: impl FnOnce(&mut M) -> Result<O>,
        loss: F,
    ) -> Result<Run<'r, 'a, M, S, O, F>>
    where
        S: Source,
        O: AsAdamW,
        L: Into<Loss>,
        F: FnMut(&M, &S::Batch) -> Result<L>,
    {
        let checkpoints = self.output.as_deref();
        let checkpoints = checkpoints.map(|dir| Checkpoints::open(dir, self.options.keep));
        let checkpoints = checkpoints.transpose()?;
        let last = match &checkpoints {
            Some(checkpoints) => checkpoints.last()?,
            None => None,
        };
        self.check_output(last.is_some())?;
        let mut run = match &last {
            Some(path) => {
                let (state, mut notes) = self.earlier(path)?;
                source.restore(&state.source)?;
                let optimizer = load_state(path, model, optimizer)?;
                let now = optimizer.as_adamw().settings();
                if now != state.optimizer {
                    notes.push(format!(
                        "the optimiser had {} when the checkpoint was written, and goes on with {now}",
                        state.optimizer
                    ));
                }
                let mut run = Run::new(self, plan, model, source, optimizer, loss, state);
                run.notes = notes;
                run
            }
            None => {
                if model.trainable_vars().is_empty() {
                    return Err(Error::Training(vec![
                        "the model has nothing to train: give it an adapter (to_lora, add_adapter), make \
                         one act (set_active), or train parts in full (modules_to_save)"
                            .into(),
                    ]));
                }
                seed_dropout(self.options.seed);
                let (optimizer, state) = (optimizer(model)?, State::new(&self.options));
                Run::new(self, plan, model, source, optimizer, loss, state)
            }
        };
        run.state.optimizer = run.optimizer.as_adamw().settings();
        if let Some(checkpoints) = checkpoints {
            checkpoints.clean()?;
            let output = run.trainer.output.clone().unwrap_or_default();
            let log = Log::open(&output, run.state.step)?;
            #[cfg(feature = "train-ui")]
            let log = match run.trainer.tensorboard {
                true => log.with_events(&output)?,
                false => log,
            };
            run.log = Some(log);
            run.files = Some((output, checkpoints));
        }
        run.checkpoint = last;
        Ok(run)
    }

    /// The run of another rank: it goes on from what rank 0 begins with.
    fn join<'r, S, O, L, F>(
        &'r mut self,
        plan: Plan,
        model: &'r mut M,
        source: &'r mut S,
        optimizer: impl FnOnce(&mut M) -> Result<O>,
        loss: F,
    ) -> Result<Run<'r, 'a, M, S, O, F>>
    where
        S: Source,
        O: AsAdamW,
        L: Into<Loss>,
        F: FnMut(&M, &S::Batch) -> Result<L>,
    {
        let start = self.parallel.file(Path::new(""))?;
        let state = State::read(start.path())?;
        let parallel = &self.parallel;
        let differs = |what: &str, problem: String| {
            Error::Training(vec![format!(
                "{parallel} has another {what} than rank 0: {problem}"
            )])
        };
        if self.options != state.options {
            let (own, first) = (&self.options, &state.options);
            return Err(differs("configuration", format!("{own:?}, and {first:?}")));
        }
        let restored = source.restore(&state.source);
        restored.map_err(|error| differs("source of batches", error.to_string()))?;
        let optimizer = load_state(start.path(), model, optimizer);
        let optimizer = optimizer.map_err(|error| differs("model", error.to_string()))?;
        let own = optimizer.as_adamw().settings();
        if own != state.optimizer {
            let first = &state.optimizer;
            return Err(differs("optimiser", format!("{own}, and {first}")));
        }
        Ok(Run::new(self, plan, model, source, optimizer, loss, state))
    }

    /// Refuses to begin where an earlier run was.
    fn check_output(&self, has_checkpoint: bool) -> Result<()> {
        let Some(output) = self.output.as_ref().filter(|_| !self.resume) else {
            return Ok(());
        };
        match has_checkpoint || output.join(LOG).exists() {
            true => Err(Error::file(
                output,
                "holds an earlier run: go on from it with resume(true), or choose another output",
            )),
            false => Ok(()),
        }
    }

    /// The state of a checkpoint, with these options from here on.
    fn earlier(&self, path: &std::path::Path) -> Result<(State, Vec<String>)> {
        let mut state = State::read(path)?;
        let note = self.options.follows(&state.options)?;
        if self.options.best != state.options.best {
            // What was the best by another measure is none.
            state.best = None;
        }
        state.options = self.options.clone();
        Ok((state, note.into_iter().collect()))
    }
}

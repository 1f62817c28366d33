//! The run: from a base model and data to an adapter in the output folder.

use super::folder::Folder;
use super::job::Prepared;
use super::memory::Memory;
use super::optimizer::Optimizer;
use super::report::{Plan, Report};
use super::settings::Settings;
use crate::model::CLASSES_FILE;
use crate::shell::common::Common;
use crate::shell::end::Stopped;
use crate::shell::print::note;
use anyhow::{Context, Result, anyhow, bail};
use lora::data::BatchOptions;
use lora::peft::SaveOptions;
use lora::train::{
    Dataset, Ended, Event, Interrupt, Length, Metrics, ModelCard, Parallel, Progress, Source,
    Trained, Trainer,
};
use lora::{Error, Init, Lora, LoraModel, LoraModule};
use serde::Serialize;
use std::fmt::Display;

/// Batches that initial values look at which depend on data.
const CALIBRATION: usize = 16;

/// A run that is asked for.
#[derive(Debug)]
pub struct Run<'a> {
    pub settings: &'a Settings,
    pub folder: &'a Folder,
    pub resume: bool,
    pub dry_run: bool,
    pub common: &'a Common,
    pub parallel: &'a Parallel,
}

impl Run<'_> {
    /// Trains, or tells what training would take.
    ///
    /// # Errors
    /// Says what went wrong, or that the run was stopped.
    pub fn tune<D: Dataset>(&self, prepared: Prepared<D>) -> Result<()> {
        let settings = self.settings;
        for fact in &prepared.facts {
            self.common.say(fact)?;
        }
        let Prepared {
            base,
            lora,
            training,
            held_out,
            ..
        } = &prepared;
        let options = BatchOptions::new(settings.batch).seed(settings.seed);
        let mut batches = training.batches(&options)?;
        let per_epoch = batches.batches_per_epoch().unwrap_or(0);
        if per_epoch == 0 {
            bail!(
                "no batch of {} examples of --data {} teaches anything: pairs need others beside them, or a \
                 `negative`",
                settings.batch,
                settings.data.display()
            );
        }
        let mut model = match needs_data(lora.init) {
            true => self.calibrated(base, lora, training)?,
            false => base.to_lora(lora)?,
        };
        model.eval();
        let summary = model.summary();
        let totals = summary.totals();
        if self.dry_run {
            self.common.say(format_args!("\n{summary}\n"))?;
            let plan = Plan {
                steps: self.steps(per_epoch),
                batches_per_epoch: per_epoch,
                trainable: summary.trainable,
                parameters: summary.total,
                memory: Memory::of(&mut model, &summary, training, settings)?,
            };
            return self.result(&plan, &plan);
        }
        self.common
            .say(format_args!("LoRA    rank {}: {totals}", settings.rank))?;
        let ranks = self.parallel.ranks();
        if ranks > 1 {
            self.common.say(format_args!(
                "ranks   {ranks}, which share each batch of {}",
                settings.batch
            ))?;
        }
        // Nothing is written, and nothing replaced, before all have a model and data.
        self.parallel.barrier()?;
        let at_once = 2 * settings.batch;
        let measures = self.parallel.is_first() && !self.resume;
        let before = match (held_out, measures) {
            (Some(held_out), true) => Some(held_out.evaluate(&model, at_once)?),
            _ => None,
        };
        if let Some(before) = &before {
            self.common.say(format_args!("before  {before}"))?;
        }
        let interrupt = Interrupt::catch()?;
        let run = self.train(
            &mut model,
            training,
            held_out.as_ref(),
            &mut batches,
            &interrupt,
        );
        if run.is_err() && self.parallel.is_first() {
            self.folder.undo();
        }
        let trained = run?;
        let after = match (settings.end_with_best, &trained.best) {
            (true, Some(best)) => Some(best),
            _ => trained.evaluations.last(),
        };
        let after = after.map(|evaluation| &evaluation.metrics);
        let speed = tokens_a_second(training, &trained, settings, per_epoch);
        let before = before.as_ref();
        let report = Report::of(self.folder.dir(), &trained, before, after, &summary, speed);
        if trained.ended == Ended::Stopped {
            return self.stopped(report, &trained, &interrupt);
        }
        if self.parallel.is_first() {
            self.save(&model, &prepared, &trained, after)?;
        }
        self.result(&report, format_args!("\n{report}"))
    }

    /// Prints the result, which is one of all processes.
    fn result(&self, json: &impl Serialize, shown: impl Display) -> Result<()> {
        match self.parallel.is_first() {
            true => self.common.result(json, shown),
            false => Ok(()),
        }
    }

    /// The model with initial values that data decides.
    fn calibrated<D: Dataset>(
        &self,
        base: &<D::Model as LoraModule>::Base,
        config: &lora::LoraConfig,
        data: &D,
    ) -> Result<D::Model> {
        let options = BatchOptions::new(self.settings.batch).seed(self.settings.seed);
        let mut batches = data.batches(&options)?;
        let mut left = CALIBRATION;
        let calibrated =
            base.calibrate(config, |model: &Lora<<D::Model as LoraModule>::Base>| {
                if left == 0 {
                    return Ok(None);
                }
                left -= 1;
                let batch = batches.next_batch()?;
                batch
                    .map(|batch| Ok(data.loss(model, &batch)?.mean))
                    .transpose()
            })?;
        Ok(base.to_lora_calibrated(config, &calibrated)?)
    }

    fn train<D: Dataset>(
        &self,
        model: &mut D::Model,
        training: &D,
        held_out: Option<&D>,
        batches: &mut impl Source<Batch = D::Batch>,
        interrupt: &Interrupt,
    ) -> Result<Trained> {
        let settings = self.settings;
        if self.parallel.is_first() {
            self.folder.begin(settings)?;
        }
        // A closed error output ends nothing here.
        let mut progress = Progress::lines_to(|line| drop(note(line)));
        let measured = held_out.unwrap_or(training);
        let mut trainer = Trainer::new(settings.options(measured.best()))
            .output(self.folder.dir())
            .parallel(self.parallel)
            .resume(self.resume)
            .tensorboard(settings.tensorboard)
            .stop_when(|| interrupt.signal().is_some())
            .watch(|event| {
                // How a stopped run goes on is told at its end.
                if !matches!(event, Event::End(trained) if trained.ended == Ended::Stopped) {
                    progress.tell(event);
                }
                Ok(())
            });
        if let Some(held_out) = held_out {
            let at_once = 2 * settings.batch;
            trainer = trainer.evaluate(move |model| held_out.evaluate(model, at_once));
        }
        let optimizer = |model: &mut D::Model| Optimizer::new(model, settings);
        let trained = trainer.run(model, batches, optimizer, |model, batch| {
            training.loss(model, batch)
        });
        trained.map_err(|error| match error {
            Error::NotFinite(_) => anyhow!("{error}\ntry a lower --lr, now {:?}", settings.lr),
            error => error.into(),
        })
    }

    /// Tells that the run was stopped, and how it goes on. All processes stop at the same step, and one of
    /// them tells.
    fn stopped(&self, report: Report<'_>, trained: &Trained, interrupt: &Interrupt) -> Result<()> {
        if !self.parallel.is_first() {
            return Ok(());
        }
        let command = self.folder.command();
        let step = trained.steps;
        note(format_args!(
            "a checkpoint holds step {step}; to go on: {command}"
        ))?;
        if self.common.json {
            self.common.result(&report.go_on(command), "")?;
        }
        let signal = interrupt.signal().unwrap_or(2);
        Err(Stopped { signal }.into())
    }

    /// Writes the adapter and what stands beside.
    fn save<D: Dataset>(
        &self,
        model: &D::Model,
        prepared: &Prepared<D>,
        trained: &Trained,
        after: Option<&Metrics>,
    ) -> Result<()> {
        let settings = self.settings;
        if let Some(classes) = &prepared.classes {
            let names = serde_json::to_string_pretty(classes)? + "\n";
            self.folder.write(CLASSES_FILE, names.as_bytes())?;
        }
        let (task, pipeline) = prepared.task;
        let mut save = SaveOptions::new().base_model(&settings.model);
        if let Some(task) = task {
            save = save.task_type(task);
        }
        let dir = self.folder.dir();
        model
            .save_adapter_with(dir, &save)
            .with_context(|| format!("cannot write the adapter to --output {}", dir.display()))?;
        let options = settings.options(prepared.training.best());
        let mut card = ModelCard::new(&settings.model)
            .task(pipeline)
            .setting("data", settings.data.display())
            .setting("rank", settings.rank)
            .setting("alpha", settings.alpha.unwrap_or(settings.rank as f64))
            .setting("dropout", settings.dropout)
            .setting("optimiser", settings.optimizer)
            .setting("learning rate", settings.lr)
            .setting("batch", settings.batch)
            .options(&options)
            .trained(trained);
        if !is_without_length(&prepared.training) {
            card = card.setting("tokens of a text at most", settings.max_length);
        }
        if let Some(after) = after {
            card = card.metrics(after);
        }
        card.write(dir)?;
        Ok(())
    }

    /// The steps of the whole run.
    fn steps(&self, per_epoch: usize) -> usize {
        match self.settings.length() {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => {
                let steps = per_epoch.div_ceil(self.settings.accumulate);
                steps.saturating_mul(epochs)
            }
        }
    }
}

/// Whether initial values depend on data.
fn needs_data(init: Init) -> bool {
    matches!(init, Init::Eva | Init::Corda | Init::LoraGa)
}

/// Whether the examples have no length, as images.
fn is_without_length(data: &impl Dataset) -> bool {
    data.lengths().iter().all(|&length| length == 1)
}

/// The data's tokens that a second of training learns from; padding does not count.
fn tokens_a_second<D: Dataset>(
    data: &D,
    trained: &Trained,
    settings: &Settings,
    per_epoch: usize,
) -> Option<f64> {
    if is_without_length(data) {
        return None;
    }
    let tokens: usize = data.lengths().iter().sum();
    let a_step = tokens as f64 / per_epoch as f64 * settings.accumulate as f64;
    let seconds = trained.step.as_secs_f64();
    (seconds > 0.0).then(|| a_step / seconds)
}

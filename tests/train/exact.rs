//! A run that was stopped ends with the numbers of one that was not.

use super::{Batch, batches, evaluate, loss, model, options, weights};
use lora::data::BatchOptions;
use lora::optim::{AsAdamW, LoraFa, LoraPlus, Riemannian};
use lora::train::{Ended, Every, Metrics, TrainOptions, Trained, Trainer};
use std::cell::Cell;
use std::path::Path;

use super::LoraNet;

/// A run in this folder that stops after so many steps of its own: dropout, shuffling, accumulation,
/// clipping, a course with warm-up, an evaluation that draws.
fn run<O: AsAdamW>(
    dir: &Path,
    options: TrainOptions,
    stop_after: usize,
    make: impl Fn(&mut LoraNet) -> lora::Result<O>,
) -> (Trained, LoraNet) {
    // What was drawn before is no part of the run.
    lora::seed_dropout(stop_after as u64);
    let mut model = model(0.3);
    let mut source = batches(&BatchOptions::new(2).seed(7));
    let steps = Cell::new(0);
    let trained = Trainer::new(options)
        .output(dir)
        .resume(true)
        .evaluate(|model| {
            let zeros =
                candle_core::Tensor::ones(4, candle_core::DType::F32, &candle_core::Device::Cpu)?;
            lora::ops::dropout(&zeros, 0.5)?;
            evaluate(model)
        })
        .stop_when(|| {
            steps.set(steps.get() + 1);
            steps.get() == stop_after
        })
        .run(&mut model, &mut source, make, loss);
    (trained.unwrap(), model)
}

#[track_caller]
fn check<O: AsAdamW>(what: &str, make: impl Fn(&mut LoraNet) -> lora::Result<O> + Copy) {
    let dir = tempfile::tempdir().unwrap();
    let (whole, expected) = run(&dir.path().join("whole"), options(), 0, make);
    // 6 batches an epoch, 2 a step.
    assert_eq!((whole.ended, whole.steps), (Ended::Finished, 9), "{what}");
    for stop in 1..=9 {
        let dir = dir.path().join(stop.to_string());
        let (first, _) = run(&dir, options(), stop, make);
        assert_eq!((first.ended, first.steps), (Ended::Stopped, stop), "{what}");
        let (second, model) = run(&dir, options(), 0, make);
        assert_eq!((second.ended, second.steps), (Ended::Finished, 9), "{what}");
        assert_eq!(weights(&model), weights(&expected), "{what} after {stop}");
        assert_eq!(second.losses, whole.losses, "{what} after {stop}");
        assert_eq!(second.evaluations, whole.evaluations, "{what} after {stop}");
        assert_eq!(second.best, whole.best, "{what} after {stop}");
    }
    // One step a process, with the random numbers of each process its own.
    let dir = dir.path().join("each");
    for step in 1..=9 {
        assert_eq!(run(&dir, options(), 1, make).0.steps, step, "{what}");
    }
    let (last, model) = run(&dir, options(), 0, make);
    assert_eq!(weights(&model), weights(&expected), "{what}");
    assert_eq!(last.losses, whole.losses, "{what}");
}

#[test]
fn a_run_stopped_after_any_step_ends_as_one_that_was_not() {
    check("LoRA+", |model| LoraPlus::new(2e-2, 4.0).adamw(model));
}

#[test]
fn every_optimiser_goes_on() {
    check("LoRA-FA", |model| LoraFa::new(model, 1e-2, 0.01));
    check("Riemannian", |model| {
        let adamw = LoraPlus::new(1e-2, 2.0).adamw(model)?;
        Riemannian::new(model, adamw, 1e-2)
    });
}

/// A run may be killed behind an evaluation, an epoch or a save: whatever checkpoint is the last, the run
/// ends the same.
#[test]
fn a_run_goes_on_from_each_of_its_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let make = |model: &mut LoraNet| LoraPlus::new(2e-2, 4.0).adamw(model);
    for (what, every) in [("steps", Every::Steps(1)), ("epochs", Every::Epoch)] {
        let options = options().save(every).keep(100);
        let whole = dir.path().join(what);
        let (_, expected) = run(&whole, options.clone(), 0, make);
        let mut seen = 0;
        for entry in whole.join("checkpoints").read_dir().unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if !name.starts_with("step-") {
                continue;
            }
            let again = dir.path().join(format!("{what} {name}"));
            std::fs::create_dir_all(again.join("checkpoints")).unwrap();
            std::fs::copy(&path, again.join("checkpoints").join(name)).unwrap();
            let (_, model) = run(&again, options.clone(), 0, make);
            assert_eq!(weights(&model), weights(&expected), "{what} {name}");
            seen += 1;
        }
        assert_eq!(seen, if what == "steps" { 9 } else { 3 });
    }
}

/// Neither an evaluation nor a checkpoint changes what is trained.
#[test]
fn looking_changes_nothing() {
    let mut models = [model(0.3), model(0.3)];
    for (model, watched) in models.iter_mut().zip([false, true]) {
        let every = [Every::Never, Every::Steps(1)][usize::from(watched)];
        let mut trainer = Trainer::new(options().evaluate(every).check_gradients(watched));
        if watched {
            trainer = trainer.evaluate(|model: &LoraNet| {
                let (xs, _): Batch = super::batch(&[0, 1])?;
                lora::ops::dropout(&xs, 0.5)?;
                let _ = model;
                Ok(Metrics::from([("loss", 1.0)]))
            });
        }
        let mut source = batches(&BatchOptions::new(2).seed(7));
        let make = |model: &mut LoraNet| LoraPlus::new(2e-2, 4.0).adamw(model);
        trainer.run(model, &mut source, make, loss).unwrap();
    }
    assert_eq!(weights(&models[0]), weights(&models[1]));
}

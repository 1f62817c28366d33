//! What cannot learn, or go on, is refused with what to do.

use super::{Batch, LoraNet, batches, evaluate, loss, model, optimizer, options};
use candle_core::Tensor;
use lora::data::BatchOptions;
use lora::train::{Best, Every, Loss, Metrics, Source, TrainOptions, Trained, Trainer};
use lora::{Error, LoraModule};
use std::path::Path;

/// The error of a run.
#[track_caller]
fn error<L: Into<Loss>>(
    mut model: LoraNet,
    options: TrainOptions,
    loss: impl FnMut(&LoraNet, &Batch) -> lora::Result<L>,
) -> String {
    let mut source = batches(&BatchOptions::new(4));
    let trained = Trainer::new(options).run(&mut model, &mut source, optimizer, loss);
    trained.unwrap_err().to_string()
}

#[test]
fn a_model_that_cannot_learn_is_refused() {
    let mut frozen = model(0.0);
    frozen.set_active(&[]).unwrap();
    let found = error(frozen, options(), loss);
    assert!(
        found.contains("nothing to train: give it an adapter"),
        "{found}"
    );

    let cut = |model: &LoraNet, batch: &Batch| Ok(loss(model, batch)?.mean.detach());
    let found = error(model(0.0), options().check_gradients(false), cut);
    assert!(
        found.contains("4 of the model's 4 trainable parameters got no gradient"),
        "{found}"
    );

    // A way around the cut: each parameter has a gradient, half of the right one.
    let half = |model: &LoraNet, batch: &Batch| {
        let loss = loss(model, batch)?.mean;
        Ok((&loss + loss.detach())?)
    };
    let found = error(model(0.0), options(), half);
    assert!(found.starts_with("the gradient is wrong"), "{found}");
}

#[test]
fn numbers_that_are_none_are_refused_with_their_step() {
    let mut count = 0;
    let nan = |model: &LoraNet, batch: &Batch| {
        count += 1;
        let factor = if count == 6 { f64::NAN } else { 1.0 };
        Ok((loss(model, batch)?.mean * factor)?)
    };
    let found = error(
        model(0.0),
        options().check_gradients(false).accumulate(1),
        nan,
    );
    assert!(
        found.starts_with("the loss at step 6 is not finite: no step was taken\n"),
        "{found}"
    );

    let rows = |model: &LoraNet, (xs, _): &Batch| {
        use candle_core::Module;
        Ok(model.forward(xs)?)
    };
    let found = error(model(0.0), options().check_gradients(false), rows);
    assert!(
        found.contains("the loss has shape [3, 3]: it must be one number"),
        "{found}"
    );

    let nothing =
        |model: &LoraNet, batch: &Batch| Ok(Loss::over_tokens(loss(model, batch)?.mean, 0));
    let found = error(model(0.0), options().check_gradients(false), nothing);
    assert!(
        found.contains("a batch of step 1 has nothing to learn, 0 tokens"),
        "{found}"
    );
}

#[test]
fn options_that_cannot_be_are_listed_together() {
    let options = TrainOptions::epochs(0)
        .accumulate(0)
        .clip(f64::NAN)
        .warmup(2.0);
    let options = options
        .patience(3)
        .end_with_best(true)
        .evaluate(Every::Steps(0));
    let found = error(model(0.0), options, loss);
    for part in [
        "the number of epochs is 0",
        "`accumulate` is 0",
        "`clip` is NaN: it must be above 0",
        "`warmup` is 2: it is a share of the steps",
        "from evaluation to evaluation is 0",
        "`patience` needs an evaluation: call Trainer::evaluate",
        "`end_with_best` needs checkpoints: call Trainer::output",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
}

#[test]
fn an_evaluation_gives_numbers_that_rank() {
    let run = |metrics: Metrics, options: TrainOptions| {
        let mut source = batches(&BatchOptions::new(4));
        let mut trainer = Trainer::new(options).evaluate(|_| Ok(metrics.clone()));
        let trained = trainer.run(&mut model(0.0), &mut source, optimizer, loss);
        trained.unwrap_err().to_string()
    };
    let found = run(Metrics::from([("f1", f64::NAN)]), options());
    assert!(
        found.contains("the evaluation after step 2 gave `f1` as NaN"),
        "{found}"
    );
    let found = run(Metrics::from([("f1", 0.5)]), options().patience(2));
    assert!(
        found.contains("gave no `loss`, by which the best is chosen, but f1 0.5000"),
        "{found}"
    );
}

fn resumed(
    dir: &Path,
    resume: bool,
    options: TrainOptions,
    batch: &BatchOptions,
) -> lora::Result<Trained> {
    Trainer::new(options)
        .output(dir)
        .resume(resume)
        .evaluate(evaluate)
        .stop_when(|| true)
        .run(&mut model(0.0), &mut batches(batch), optimizer, loss)
}

#[test]
fn a_run_goes_on_as_it_was_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let batch = BatchOptions::new(2);
    resumed(dir.path(), false, options(), &batch).unwrap();
    let refused = |resume, options, batch: &BatchOptions| {
        resumed(dir.path(), resume, options, batch)
            .unwrap_err()
            .to_string()
    };
    let found = refused(false, options(), &batch);
    assert!(
        found.ends_with(
            "holds an earlier run: go on from it with resume(true), or choose another output"
        ),
        "{found}"
    );
    let found = refused(true, options().accumulate(3).clip(2.0), &batch);
    assert!(
        found.contains("`accumulate` was 2 when the checkpoint was written, and is 3"),
        "{found}"
    );
    assert!(found.contains("`clip` was Some(0.5)"), "{found}");
    let found = refused(true, options(), &batch.clone().seed(1));
    assert!(
        found.contains("the checkpoint's batches were made with other options"),
        "{found}"
    );

    // What makes no number is free: so are a longer run, of which the user is told, and another rank.
    let mut notes = Vec::new();
    let longer = TrainOptions::epochs(9).accumulate(2).clip(0.5).warmup(0.2);
    let longer = longer.course(lora::train::Course::Cosine).seed(3).keep(7);
    let trained = Trainer::new(longer.best(Best::Lowest("other".into())))
        .output(dir.path())
        .resume(true)
        .watch(|event| {
            if let lora::train::Event::Note(note) = event {
                notes.push(note.to_string());
            }
            Ok(())
        })
        .run(&mut model(0.0), &mut batches(&batch), optimizer, loss)
        .unwrap();
    assert_eq!(trained.steps, 27);
    assert_eq!(
        notes,
        [
            "the run was to last 3 epochs, and goes on for 9 epochs in all: the learning rate's course is \
             that of the new length from here"
        ]
    );
}

#[test]
fn an_output_that_is_something_else_stays() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("log.jsonl"), "my notes\n").unwrap();
    let found = resumed(dir.path(), true, options(), &BatchOptions::new(2)).unwrap_err();
    let found = found.to_string();
    assert!(
        found
            .ends_with("line 1 is none of a training run: move the file, or choose another output"),
        "{found}"
    );
    let notes = std::fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    assert_eq!(notes, "my notes\n");
}

/// A source without batches would never end.
#[test]
fn a_source_without_batches_is_refused() {
    struct Empty(Option<usize>);

    impl Source for Empty {
        type Batch = Batch;

        fn next_batch(&mut self) -> lora::Result<Option<Batch>> {
            Ok(None)
        }

        fn batches_per_epoch(&self) -> Option<usize> {
            self.0
        }

        fn state(&self) -> lora::Result<serde_json::Value> {
            Ok(serde_json::Value::Null)
        }

        fn restore(&mut self, _: &serde_json::Value) -> lora::Result<()> {
            Ok(())
        }
    }

    let run = |batches: Option<usize>, options: TrainOptions| {
        let mut trainer = Trainer::new(options);
        let trained = trainer.run(&mut model(0.0), &mut Empty(batches), optimizer, loss);
        trained.unwrap_err().to_string()
    };
    assert!(run(Some(0), options()).contains("there is no batch to train on"));
    let found = run(None, TrainOptions::steps(3));
    assert!(found.contains("epoch 1 has no batch"), "{found}");
    let found = run(None, options());
    assert!(
        found.contains("say TrainOptions::steps, or course(Course::Constant)"),
        "{found}"
    );
}

/// An error of the user's own ends the run as it is.
#[test]
fn an_error_of_a_watcher_ends_the_run() {
    let mut source = batches(&BatchOptions::new(4));
    let trained = Trainer::new(options())
        .watch(|_| Err(Error::Training(vec!["enough".into()])))
        .run(
            &mut model(0.0),
            &mut source,
            optimizer,
            |model, batch| -> lora::Result<Tensor> { Ok(loss(model, batch)?.mean) },
        );
    assert_eq!(trained.unwrap_err().to_string(), "the training: enough");
}

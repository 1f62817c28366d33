//! Several ranks do what one does. The ranks are threads here; `tests/mpi.rs` has processes.

#[path = "../ranks.rs"]
mod ranks;

use candle_core::Tensor;
use lora::Error;
use lora::data::BatchOptions;
use lora::train::{Ended, Every, Examples, Length, Loss, Parallel, Source, TrainOptions, Trainer};
use ranks::{
    Batch, Case, Done, LoraNet, assert_near, batch, cases, loss, model, optimizer, plain, train,
    weights,
};
use std::fs;

fn alone(case: &Case) -> Done {
    train(case, &Parallel::alone()).unwrap()
}

/// The run on so many threads, rank 0 first.
fn together(case: &Case, ranks: usize) -> Vec<Done> {
    Parallel::threads(ranks, |parallel| train(case, parallel)).unwrap()
}

fn losses(done: &Done) -> Vec<f64> {
    done.steps.iter().map(|step| step.loss).collect()
}

fn norms(done: &Done) -> Vec<f64> {
    let norms = done.steps.iter().filter_map(|step| step.grad_norm);
    norms.collect()
}

/// Two ranks of half a batch, and three and four with shares of unlike sizes, take the steps of one.
#[test]
fn ranks_take_the_steps_of_one() {
    for case in cases() {
        let one = alone(&case);
        assert_eq!(one.trained.steps, 10);
        for count in [2, 3, 4] {
            let what = format!("{}, {count} ranks", case.name);
            let all = together(&case, count);
            let first = &all[0];
            for done in &all {
                assert_eq!(weights(&done.model), weights(&first.model), "{what}");
                assert_eq!(done.trained.losses, first.trained.losses, "{what}");
                assert_eq!(done.trained.evaluations, first.trained.evaluations);
            }
            assert_near(&what, &weights(&first.model), &weights(&one.model), 1e-6);
            assert_near(&what, &losses(first), &losses(&one), 1e-6);
            assert_near(&what, &norms(first), &norms(&one), 1e-6);
            let counts = |done: &Done| -> Vec<(usize, usize)> {
                let steps = done.steps.iter();
                steps.map(|step| (step.epoch, step.count)).collect()
            };
            assert_eq!(counts(first), counts(&one), "{what}");
        }
    }
}

/// Each rank alone would learn something else.
#[test]
fn a_rank_learns_from_the_examples_of_all() {
    let case = plain();
    let half = Case {
        batch: 4,
        ..plain()
    };
    let (whole, half) = (alone(&case), alone(&half));
    let pairs = weights(&whole.model).into_iter().zip(weights(&half.model));
    let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(largest > 1e-3, "{largest:e}");
}

#[test]
fn rank_0_evaluates_reports_and_saves() {
    let dir = tempfile::tempdir().unwrap();
    let mut case = plain();
    case.options = case.options.end_with_best(true);
    case.output = Some(dir.path().join("run"));
    let all = together(&case, 3);
    let told: Vec<_> = all
        .iter()
        .map(|done| (done.evaluated, done.steps.len()))
        .collect();
    assert_eq!(told, [(4, 10), (0, 0), (0, 0)]);
    let saved = all.iter().map(|done| done.trained.checkpoint.is_some());
    assert_eq!(saved.collect::<Vec<_>>(), [true, false, false]);
    let log = fs::read_to_string(dir.path().join("run/log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 14);
    let best = all[0].trained.best.clone().unwrap();
    for done in &all {
        assert_eq!(done.trained.best.as_ref(), Some(&best));
        assert_eq!(weights(&done.model), weights(&all[0].model));
    }
}

/// 16 numbers of a gradient are 64 bytes, and whatever the run, the loss goes with them.
#[test]
fn the_traffic_of_a_step_is_its_gradients() {
    let traffic = |steps: usize| {
        let mut case = plain();
        case.options.length = Length::Steps(steps);
        case.options.evaluate = Every::Never;
        case.options.save = Every::Never;
        let work = |parallel: &Parallel| Ok((train(&case, parallel)?, parallel.traffic()));
        Parallel::threads::<_, Error>(2, work).unwrap().remove(0)
    };
    let ((done, short), (_, long)) = (traffic(4), traffic(9));
    let numbers = weights(&done.model).len();
    assert_eq!(numbers, 2 * (8 + 6) + 2 * (8 + 8));
    // Two sums a step: the gradients with six numbers of the loss; whether to stop.
    assert_eq!(long.sums - short.sums, 5 * 2);
    assert_eq!(long.summed - short.summed, 5 * 4 * (numbers + 6 + 1));
    assert_eq!(long.broadcasts, short.broadcasts);
}

/// The number of ranks is no part of a run: each part may have another.
#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let mut case = plain();
    case.options = case.options.accumulate(2);
    let whole = alone(&case);
    for (first, second) in [(2, 1), (1, 3), (4, 2)] {
        let what = format!("{first} ranks, then {second}");
        case.output = Some(dir.path().join(&what));
        case.resume = true;
        // The last rank asks to stop, and all do.
        case.stop = Some((first - 1, 5));
        for done in together(&case, first) {
            assert_eq!(
                (done.trained.ended, done.trained.steps),
                (Ended::Stopped, 5)
            );
        }
        case.stop = None;
        for done in together(&case, second) {
            assert_eq!(
                (done.trained.ended, done.trained.steps),
                (Ended::Finished, 10)
            );
            assert_near(&what, &weights(&done.model), &weights(&whole.model), 1e-6);
            assert_near(&what, &done.trained.losses, &whole.trained.losses, 1e-6);
        }
    }
}

/// Dropout differs from rank to rank, and goes on exactly.
#[test]
fn ranks_with_dropout_go_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let mut case = plain();
    case.config = case.config.dropout(0.3);
    let run = |case: &Case| weights(&together(case, 2)[0].model);
    let whole = run(&case);
    for stop in [1, 4, 9] {
        case.output = Some(dir.path().join(stop.to_string()));
        case.resume = true;
        case.stop = Some((1, stop));
        assert_ne!(run(&case), whole);
        case.stop = None;
        assert_eq!(run(&case), whole, "stopped after {stop}");
    }

    // Two ranks with the same examples would draw the same masks if their seeds were the same: the mean of
    // their gradients would be that of one.
    let same = |ranks| {
        let work = |parallel: &Parallel| {
            let mut model = model(&plain().config.dropout(0.5));
            let source = Examples::new([1; 2], &BatchOptions::new(2), |numbers| {
                batch(&vec![0; numbers.len()])
            });
            let options = TrainOptions::steps(1).check_gradients(false);
            let mut trainer = Trainer::new(options).parallel(parallel);
            trainer.run(&mut model, &mut source?, optimizer, |model, batch| {
                let (xs, ys, counts) = batch;
                let row = |t: &Tensor| t.narrow(0, 0, 1);
                loss(model, &(row(xs)?, row(ys)?, row(counts)?))
            })?;
            Ok(weights(&model))
        };
        Parallel::threads::<_, Error>(ranks, work)
            .unwrap()
            .remove(0)
    };
    // One rank of one row has rank 0's mask of the first step; two ranks have one more.
    assert_ne!(same(2), same(1));
}

#[test]
fn an_error_of_the_only_rank_is_one() {
    let fails = |_: &Parallel| Err(Error::Data(vec!["no such file".into()]));
    assert_eq!(error(1, fails), "the data: no such file");
}

fn error(ranks: usize, work: impl Fn(&Parallel) -> lora::Result<()> + Sync) -> String {
    let all = Parallel::threads(ranks, work);
    all.unwrap_err().to_string()
}

/// Runs with another loss, batches of so many examples, and a configuration of the rank's own.
fn run<L: Into<Loss>>(
    parallel: &Parallel,
    case: &Case,
    examples: usize,
    loss: impl FnMut(&LoraNet, &Batch) -> lora::Result<L>,
) -> lora::Result<()> {
    let mut source = Examples::new(vec![1; examples], &BatchOptions::new(case.batch), batch)?;
    let mut model = model(&case.config);
    let mut trainer = Trainer::new(case.options.clone()).parallel(parallel);
    trainer.run(&mut model, &mut source, optimizer, loss)?;
    Ok(())
}

/// The error is that of the rank that has one; the others learn of it.
#[test]
fn an_error_of_a_rank_is_one_of_all() {
    let others = std::sync::Mutex::new(Vec::new());
    let failed = error(3, |parallel| {
        let mut step = 0;
        let result = run(parallel, &plain(), 20, |model, batch| {
            step += 1;
            let own = loss(model, batch)?;
            let factor = if parallel.rank() == 1 && step == 20 {
                f64::NAN
            } else {
                1.0
            };
            Ok(Loss::over_tokens((own.mean * factor)?, own.count))
        });
        if let Err(error) = &result
            && parallel.rank() != 1
        {
            others.lock().unwrap().push(error.to_string());
        }
        result
    });
    assert!(failed.starts_with("the loss at step "), "{failed}");
    let others = others.into_inner().unwrap();
    assert_eq!(others.len(), 2);
    for error in others {
        let begin = "the training: rank 1 stopped all: the loss at step ";
        assert!(error.starts_with(begin), "{error}");
    }
}

#[test]
#[should_panic(expected = "a rank is lost")]
fn a_panic_of_a_rank_stops_all() {
    let work = |parallel: &Parallel| {
        run(parallel, &plain(), 20, |model, batch| {
            assert_ne!(parallel.rank(), 1, "a rank is lost");
            loss(model, batch)
        })
    };
    let _ = Parallel::threads(2, work);
}

#[test]
fn ranks_that_do_not_fit_are_refused() {
    let other = |parallel: &Parallel| parallel.rank() == 1;
    let options = error(2, |parallel| {
        let mut case = plain();
        case.options.accumulate = if other(parallel) { 2 } else { 1 };
        run(parallel, &case, 20, loss)
    });
    let begin = "the training: rank 1 of 2 has another configuration than rank 0: ";
    assert!(options.starts_with(begin), "{options}");
    let data = error(2, |parallel| {
        run(
            parallel,
            &plain(),
            if other(parallel) { 21 } else { 20 },
            loss,
        )
    });
    let begin = "the training: rank 1 of 2 has another source of batches than rank 0: ";
    assert!(data.starts_with(begin), "{data}");
    assert!(data.contains("20 examples, these are 21"), "{data}");
    let base = error(2, |parallel| {
        let mut source = Examples::new([1; 20], &BatchOptions::new(8), batch)?;
        let mut model = if other(parallel) {
            ranks::model_of(&plain().config, 77)
        } else {
            model(&plain().config)
        };
        let mut trainer = Trainer::new(plain().options).parallel(parallel);
        trainer.run(&mut model, &mut source, optimizer, loss)?;
        Ok(())
    });
    let begin = "the training: rank 1 of 2 has another model than rank 0: ";
    assert!(base.starts_with(begin) && base.contains("head"), "{base}");
    let optimizers = error(2, |parallel| {
        let mut source = Examples::new([1; 20], &BatchOptions::new(8), batch)?;
        let mut model = model(&plain().config);
        let rate = if other(parallel) { 2e-3 } else { 1e-3 };
        let mut trainer = Trainer::new(plain().options).parallel(parallel);
        let make = |model: &mut LoraNet| lora::optim::LoraPlus::new(rate, 4.0).adamw(model);
        trainer.run(&mut model, &mut source, make, loss)?;
        Ok(())
    });
    let begin = "the training: rank 1 of 2 has another optimiser than rank 0: ";
    assert!(optimizers.starts_with(begin), "{optimizers}");
}

#[test]
fn what_cannot_be_split_is_refused() {
    let plain_tensor = error(2, |parallel| {
        run(parallel, &plain(), 20, |model, batch| {
            Ok(loss(model, batch)?.mean)
        })
    });
    assert!(
        plain_tensor.contains("return Loss::over_examples or Loss::over_tokens"),
        "{plain_tensor}"
    );

    struct Own;
    impl Source for Own {
        type Batch = Batch;

        fn next_batch(&mut self) -> lora::Result<Option<Batch>> {
            batch(&[0, 1]).map(Some)
        }

        fn batches_per_epoch(&self) -> Option<usize> {
            Some(1)
        }

        fn state(&self) -> lora::Result<serde_json::Value> {
            Ok(serde_json::Value::Null)
        }

        fn restore(&mut self, _: &serde_json::Value) -> lora::Result<()> {
            Ok(())
        }
    }
    let source = error(2, |parallel| {
        let mut trainer = Trainer::new(plain().options).parallel(parallel);
        trainer.run(&mut model(&plain().config), &mut Own, optimizer, loss)?;
        Ok(())
    });
    assert_eq!(
        source,
        "the training: the source of batches cannot be split among 2 ranks: use train::Examples, or \
         implement Source::next_share"
    );
}

/// A share without anything to learn is a share of nothing; a batch without is refused.
#[test]
fn a_share_may_have_nothing_to_learn() {
    let learned = |model: &LoraNet, (xs, ys, counts): &Batch| {
        // The examples of rank 1 have no token.
        let counts = (counts * f64::from(u8::from(counts.dim(0)? == 3)))?;
        match counts.sum_all()?.to_scalar::<f32>()? {
            0.0 => Ok(Loss::over_tokens(
                (loss(model, &(xs.clone(), ys.clone(), (counts + 1.0)?))?).mean,
                0,
            )),
            _ => loss(model, &(xs.clone(), ys.clone(), counts)),
        }
    };
    let mut case = plain();
    case.batch = 5;
    Parallel::threads(2, |parallel| run(parallel, &case, 20, learned)).unwrap();
    case.batch = 4;
    let nothing = error(2, |parallel| run(parallel, &case, 20, learned));
    let problem =
        "a batch of step 1 has nothing to learn, 0 tokens: leave such batches out of the data";
    assert_eq!(nothing, format!("the training: {problem}"));
}

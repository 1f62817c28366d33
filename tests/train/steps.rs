//! What a step is.

use super::{LoraNet, batches, evaluate, loss, model, optimizer, weights};
use lora::data::BatchOptions;
use lora::optim::AdamW;
use lora::train::{Best, Course, Ended, Event, Metrics, Step, TrainOptions, Trainer, mean_loss};
use std::cell::{Cell, RefCell};

fn run(options: TrainOptions, batch: usize) -> (Vec<Step>, Vec<f64>, LoraNet) {
    let mut model = model(0.0);
    let mut source = batches(&BatchOptions::new(batch).shuffle(false));
    let steps = RefCell::new(Vec::new());
    let trained = Trainer::new(options)
        .watch(|event| {
            if let Event::Step(step) = event {
                steps.borrow_mut().push((*step).clone());
            }
            Ok(())
        })
        .run(&mut model, &mut source, optimizer, loss)
        .unwrap();
    (steps.into_inner(), trained.losses, model)
}

/// Micro-batches of 4, 4 and 3 examples make the step that one batch of 11 makes, only if each has its
/// weight.
#[test]
fn micro_batches_make_the_step_of_one_batch() {
    let options = TrainOptions::epochs(4).clip(0.1);
    let (one, losses, whole) = run(options.clone(), 11);
    let (several, losses_of_several, parts) = run(options.accumulate(3), 4);
    assert_eq!((one.len(), several.len()), (4, 4));
    for (a, b) in one.iter().zip(&several) {
        assert_eq!((a.count, b.count), (11, 11));
        assert!((a.loss - b.loss).abs() < 1e-6 * a.loss);
        let [a, b] = [a.grad_norm.unwrap(), b.grad_norm.unwrap()];
        assert!(a > 0.1 && (a - b).abs() < 1e-5 * a, "{a} {b}");
    }
    for (a, b) in losses.iter().zip(&losses_of_several) {
        assert!((a - b).abs() < 1e-6 * a);
    }
    for (a, b) in weights(&whole)
        .iter()
        .flatten()
        .zip(weights(&parts).iter().flatten())
    {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

/// The last step of an epoch has the batches that are left.
#[test]
fn an_epoch_ends_with_a_smaller_step() {
    let (steps, losses, _) = run(TrainOptions::epochs(2).accumulate(2), 4);
    let counts: Vec<_> = steps.iter().map(|step| (step.epoch, step.count)).collect();
    assert_eq!(counts, [(0, 8), (0, 3), (1, 8), (1, 3)]);
    let mean = (steps[0].loss * 8.0 + steps[1].loss * 3.0) / 11.0;
    assert!((losses[0] - mean).abs() < 1e-12);
}

#[test]
fn steps_end_within_an_epoch() {
    let (steps, losses, _) = run(TrainOptions::steps(5).course(Course::Constant), 4);
    assert_eq!(
        steps.iter().map(|step| step.epoch).collect::<Vec<_>>(),
        [0, 0, 0, 1, 1]
    );
    assert_eq!(losses.len(), 2);
    assert!(steps.iter().all(|step| step.lr == 2e-2));
}

#[test]
fn the_learning_rate_follows_its_course() {
    let (steps, ..) = run(TrainOptions::steps(10).warmup(0.2), 4);
    let factors: Vec<f64> = steps.iter().map(|step| step.lr / 2e-2).collect();
    let expected = [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
    for (factor, expected) in factors.iter().zip(expected) {
        assert!((factor - expected).abs() < 1e-12, "{factors:?}");
    }

    let rates = RefCell::new(Vec::new());
    Trainer::new(TrainOptions::epochs(1))
        .schedule(|step, steps| (step + 1) as f64 / steps as f64)
        .watch(|event| {
            if let Event::Step(step) = event {
                rates.borrow_mut().push(step.lr / 2e-2);
            }
            Ok(())
        })
        .run(
            &mut model(0.0),
            &mut batches(&BatchOptions::new(6)),
            optimizer,
            loss,
        )
        .unwrap();
    assert_eq!(rates.into_inner(), [0.5, 1.0]);
}

/// Accuracies of 1, 3, 2, 2, ..: the best is the second, and two no better ones end the run.
#[test]
fn a_run_that_learns_no_more_ends_with_its_best() {
    let dir = tempfile::tempdir().unwrap();
    let count = Cell::new(0);
    let snapshots = RefCell::new(Vec::new());
    let mut tuned = model(0.0);
    let best = Best::Highest("accuracy".into());
    let options = TrainOptions::epochs(50).best(best).patience(2);
    let trained = Trainer::new(options.end_with_best(true))
        .output(dir.path())
        .evaluate(|model| {
            count.set(count.get() + 1);
            snapshots.borrow_mut().push(weights(model));
            let accuracy = [1.0, 3.0, 2.0][count.get().min(3) - 1];
            Ok(Metrics::from([("accuracy", accuracy)]))
        })
        .run(
            &mut tuned,
            &mut batches(&BatchOptions::new(4)),
            optimizer,
            loss,
        )
        .unwrap();
    assert_eq!((trained.ended, trained.steps), (Ended::Early, 12));
    let best = trained.best.unwrap();
    assert_eq!((best.step, best.metrics.get("accuracy")), (6, Some(3.0)));
    let snapshots = snapshots.into_inner();
    assert_eq!(snapshots.len(), 4);
    assert_eq!(weights(&tuned), snapshots[1]);
    assert_ne!(weights(&tuned), snapshots[3]);
}

#[test]
fn a_mean_loss_has_its_weights() {
    let model = model(0.0);
    let parts = [vec![0, 1, 2], (3..11).collect()];
    let parts = parts.iter().map(|numbers| super::batch(numbers));
    let mean = mean_loss(parts, |batch| loss(&model, batch)).unwrap();
    let whole = evaluate(&model).unwrap().get("loss").unwrap();
    assert!((mean - whole).abs() < 1e-6 * whole);
    let none: [lora::Result<super::Batch>; 0] = [];
    let error = mean_loss(none, |batch| loss(&model, batch)).unwrap_err();
    assert!(
        error.to_string().contains("the mean loss of nothing"),
        "{error}"
    );
}

/// Any loss and any optimiser: a tensor, and AdamW of one's own groups.
#[test]
fn a_plain_tensor_is_a_loss() {
    let mut model = model(0.0);
    let trained = Trainer::new(TrainOptions::epochs(40)).run(
        &mut model,
        &mut batches(&BatchOptions::new(4).seed(1)),
        |model| {
            let groups = lora::optim::weight_decay_groups(model, 2e-2, 0.01);
            AdamW::grouped(model, groups)
        },
        |model, batch| Ok(loss(model, batch)?.mean),
    );
    let trained = trained.unwrap();
    assert!(trained.gradients.unwrap().layers == 2);
    let (first, last) = (trained.losses[0], trained.losses[39]);
    assert!(last < 0.5 * first, "{:?}", trained.losses);
}

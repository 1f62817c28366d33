//! Passes at the same time: on threads of their own, and on those of a pool that also computes.

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var, bail};
use lora::ops;
use lora_tests::{fixed, values};
use rayon::prelude::*;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

/// Layers that share frozen weights and train `a` and `b`.
struct Model {
    weight: Tensor,
    a: Var,
    b: Var,
}

impl Model {
    fn new(size: usize) -> Self {
        let f = |shape: (usize, usize), seed| (fixed(shape, DType::F32, seed) * 0.3).unwrap();
        Self {
            weight: f((size, size), 1),
            a: Var::from_tensor(&f((2, size), 2)).unwrap(),
            b: Var::from_tensor(&f((size, 2), 3)).unwrap(),
        }
    }

    fn loss(&self, rows: usize, seed: usize) -> Result<Tensor> {
        let size = self.weight.dim(0)?;
        let mut y = fixed((rows, size), DType::F32, seed);
        for _ in 0..3 {
            let update = ops::linear(&ops::linear(&y, &self.a, None)?, &self.b, None)?;
            let z = (ops::linear(&y, &self.weight, None)? + update)?;
            y = (ops::gelu_erf(&z)? + ops::softmax_last_dim(&z)?)?;
        }
        y.sqr()?.mean_all()
    }

    fn grads(&self, store: &GradStore) -> [Vec<f64>; 2] {
        [&self.a, &self.b].map(|var| values(store.get(var).unwrap()).unwrap())
    }
}

#[test]
fn one_graph_on_two_threads() {
    let model = Model::new(17);
    let loss = model.loss(7, 5).unwrap();
    let expected = model.grads(&loss.backward().unwrap());
    let start = Barrier::new(2);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..20 {
                    assert_eq!(model.grads(&loss.backward().unwrap()), expected);
                }
            });
        }
    });
}

#[test]
fn graphs_that_share_weights_on_many_threads() {
    let model = Model::new(13);
    let expected: Vec<_> = (0..4)
        .map(|seed| {
            let loss = model.loss(3, seed).unwrap();
            model.grads(&loss.backward().unwrap())
        })
        .collect();
    thread::scope(|scope| {
        for (seed, expected) in expected.iter().enumerate() {
            let model = &model;
            scope.spawn(move || {
                for _ in 0..50 {
                    // Storage comes and goes on all threads; half of the graphs end elsewhere.
                    let loss = model.loss(3, seed).unwrap();
                    assert_eq!(&model.grads(&loss.backward().unwrap()), expected);
                    if seed % 2 == 0 {
                        thread::spawn(move || drop(loss));
                    }
                }
            });
        }
    });
}

/// A task that waits for its kernels lets its thread take up another task's pass meanwhile.
#[test]
fn passes_on_the_pool_that_the_kernels_use() {
    let model = Model::new(130);
    let expected: Vec<_> = (0..3)
        .map(|seed| {
            let loss = model.loss(400, seed).unwrap();
            model.grads(&loss.backward().unwrap())
        })
        .collect();
    (0..24usize).into_par_iter().for_each(|task| {
        let seed = task % 3;
        let loss = model.loss(400, seed).unwrap();
        if task % 4 == 1 {
            // A pass that fails on the way.
            let calls = AtomicUsize::new(0);
            let part = lora::checkpoint(&loss, move |x| match calls.fetch_add(1, Relaxed) {
                0 => ops::silu(x),
                _ => bail!("this function fails"),
            });
            assert!((part.unwrap() + &loss).unwrap().backward().is_err());
        }
        let grads = model.grads(&loss.backward().unwrap());
        for (grad, expected) in grads.iter().zip(&expected[seed]) {
            for (grad, expected) in grad.iter().zip(expected) {
                assert!(
                    (grad - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
                    "{task}"
                );
            }
        }
    });
}

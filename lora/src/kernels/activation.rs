//! Activations and their derivatives.

use super::matrix::Threads;
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::f64::consts::{FRAC_1_SQRT_2, PI};
use std::marker::PhantomData;

/// Numbers that one task handles: enough to be worth a thread, few enough to stay in its cache.
const CHUNK: usize = 1 << 14;

/// A function of one number.
pub(crate) trait Function: Copy + Send + Sync {
    fn value<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S>;
    /// The derivative.
    fn slope<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S>;
    /// Value and derivative, where they share work.
    #[inline(always)]
    fn both<T: Element, S: Simd>(x: Vector<T, S>) -> (Vector<T, S>, Vector<T, S>) {
        (Self::value(x), Self::slope(x))
    }
}

/// max(x, 0)
#[derive(Clone, Copy)]
pub(crate) struct Relu;

impl Function for Relu {
    #[inline(always)]
    fn value<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
        x.max(x.all(0.0))
    }

    #[inline(always)]
    fn slope<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
        x.above(x.all(0.0))
    }
}

/// x·σ(x)
#[derive(Clone, Copy)]
pub(crate) struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn value<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn slope<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
        // σ + x·σ·(1 − σ)
        let sigmoid = sigmoid(x);
        (x * sigmoid).mul_add(x.all(1.0) - sigmoid, sigmoid)
    }
}

/// GELU by the error function, x·Φ(x).
#[derive(Clone, Copy)]
pub(crate) struct GeluErf;

impl Function for GeluErf {
    #[inline(always)]
    fn value<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
        x * normal_cdf(x)
    }

    #[inline(always)]
    fn slope<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
        // Φ(x) + x·φ(x)
        x.mul_add(normal_density(x), normal_cdf(x))
    }

    #[inline(always)]
    fn both<T: Element, S: Simd>(x: Vector<T, S>) -> (Vector<T, S>, Vector<T, S>) {
        let cdf = normal_cdf(x);
        (x * cdf, x.mul_add(normal_density(x), cdf))
    }
}

/// GELU by the hyperbolic tangent, ½·x·(1 + tanh(u)), u = √(2/π)·(x + 0.044715·x³): as
/// 1 + tanh(u) = 2·σ(2u), x·σ(2u).
#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;

impl Function for GeluTanh {
    #[inline(always)]
    fn value<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
        x * sigmoid(x * gelu_inner(x, 1.0))
    }

    #[inline(always)]
    fn slope<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
        // σ + x·σ·(1 − σ)·(2u)'
        let sigmoid = sigmoid(x * gelu_inner(x, 1.0));
        let along = x * gelu_inner(x, 3.0) * (x.all(1.0) - sigmoid);
        sigmoid.mul_add(along, sigmoid)
    }
}

/// 2·√(2/π)·(1 + c·0.044715·x²)
#[inline(always)]
fn gelu_inner<T: Element, S: Simd>(x: Vector<T, S>, c: f64) -> Vector<T, S> {
    let root = 2.0 * (2.0 / PI).sqrt();
    (x * x).mul_add(x.all(root * c * 0.044715), x.all(root))
}

/// 1 / (1 + e^−x)
#[inline(always)]
fn sigmoid<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
    let one = x.all(1.0);
    one / (one + (x.all(0.0) - x).exp())
}

/// Φ(x) = ½·(1 + erf(x / √2))
#[inline(always)]
fn normal_cdf<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
    let half = x.all(0.5);
    (x * x.all(FRAC_1_SQRT_2)).erf().mul_add(half, half)
}

/// φ(x) = e^(−x²/2) / √(2π)
#[inline(always)]
fn normal_density<T: Element, S: Simd>(x: Vector<T, S>) -> Vector<T, S> {
    (x * x * x.all(-0.5)).exp() * x.all((0.5 / PI).sqrt())
}

/// y = grad·f'(x), on all threads.
pub(crate) fn apply_slope<F: Function, T: Element>(x: &[T], grad: &[T], y: &mut [T]) {
    let chunks = x.par_chunks(CHUNK).zip(grad.par_chunks(CHUNK));
    let chunks = chunks.zip(y.par_chunks_mut(CHUNK));
    chunks.for_each(|((x, grad), y)| slope::<F, T>(x, grad, y));
}

/// y = f(x)
fn value<F: Function, T: Element>(x: &[T], y: &mut [T]) {
    struct Value<'a, F, T>(&'a [T], &'a mut [T], PhantomData<F>);

    impl<F: Function, T: Element> WithSimd for Value<'_, F, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let lanes = T::lanes::<S>();
            for (x, y) in self.0.chunks(lanes).zip(self.1.chunks_mut(lanes)) {
                F::value(Vector::<T, S>::load(simd, x)).store(y);
            }
        }
    }

    assert_eq!(x.len(), y.len());
    run(Value(x, y, PhantomData::<F>));
}

/// y = grad·f'(x)
fn slope<F: Function, T: Element>(x: &[T], grad: &[T], y: &mut [T]) {
    struct Slope<'a, F, T>(&'a [T], &'a [T], &'a mut [T], PhantomData<F>);

    impl<F: Function, T: Element> WithSimd for Slope<'_, F, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let lanes = T::lanes::<S>();
            let args = self.0.chunks(lanes).zip(self.1.chunks(lanes));
            for ((x, grad), y) in args.zip(self.2.chunks_mut(lanes)) {
                let slope = F::slope(Vector::<T, S>::load(simd, x));
                (slope * Vector::load(simd, grad)).store(y);
            }
        }
    }

    assert!(x.len() == y.len() && grad.len() == y.len());
    run(Slope(x, grad, y, PhantomData::<F>));
}

/// y = f(x), on as many threads as allowed.
pub(crate) fn value_on<F: Function, T: Element>(threads: Threads, x: &[T], y: &mut [T]) {
    match threads {
        Threads::One => value::<F, T>(x, y),
        Threads::All => {
            let chunks = x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK));
            chunks.for_each(|(x, y)| value::<F, T>(x, y));
        }
    }
}

/// x = f(x), on as many threads as allowed.
pub(crate) fn value_in_place<F: Function, T: Element>(threads: Threads, x: &mut [T]) {
    struct Value<'a, F, T>(&'a mut [T], PhantomData<F>);

    impl<F: Function, T: Element> WithSimd for Value<'_, F, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for x in self.0.chunks_mut(T::lanes::<S>()) {
                F::value(Vector::<T, S>::load(simd, x)).store(x);
            }
        }
    }

    match threads {
        Threads::One => run(Value(x, PhantomData::<F>)),
        Threads::All => {
            let chunks = x.par_chunks_mut(CHUNK);
            chunks.for_each(|x| run(Value(x, PhantomData::<F>)));
        }
    }
}

/// y = f(x) and grad = grad·f'(x), on as many threads as allowed.
pub(crate) fn backward_on<F: Function, T: Element>(
    threads: Threads,
    x: &[T],
    y: &mut [T],
    grad: &mut [T],
) {
    struct Backward<'a, F, T>(&'a [T], &'a mut [T], &'a mut [T], PhantomData<F>);

    impl<F: Function, T: Element> WithSimd for Backward<'_, F, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let lanes = T::lanes::<S>();
            let results = self.1.chunks_mut(lanes).zip(self.2.chunks_mut(lanes));
            for (x, (y, grad)) in self.0.chunks(lanes).zip(results) {
                let (value, slope) = F::both(Vector::<T, S>::load(simd, x));
                value.store(y);
                (Vector::load(simd, grad) * slope).store(grad);
            }
        }
    }

    match threads {
        Threads::One => run(Backward(x, y, grad, PhantomData::<F>)),
        Threads::All => {
            let results = y.par_chunks_mut(CHUNK).zip(grad.par_chunks_mut(CHUNK));
            let chunks = x.par_chunks(CHUNK).zip(results);
            chunks.for_each(|(x, (y, grad))| run(Backward(x, y, grad, PhantomData::<F>)));
        }
    }
}

//! The gate of an MLP, f(x)·up, and its derivatives.

use super::CHUNK;
use super::activation::Function;
use super::matrix::Threads;
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::marker::PhantomData;

/// y = f(x)·up, on as many threads as allowed.
pub(crate) fn gate_on<F: Function, T: Element>(threads: Threads, x: &[T], up: &[T], y: &mut [T]) {
    assert!(x.len() == y.len() && up.len() == y.len());
    let act = PhantomData::<F>;
    match threads {
        Threads::One => run(Gate { x, up, y, act }),
        Threads::All => {
            let args = x.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
            let chunks = args.zip(y.par_chunks_mut(CHUNK));
            chunks.for_each(|((x, up), y)| run(Gate { x, up, y, act }));
        }
    }
}

/// x = f(x)·up, on as many threads as allowed.
pub(crate) fn gate_in_place<F: Function, T: Element>(threads: Threads, x: &mut [T], up: &[T]) {
    assert_eq!(x.len(), up.len());
    let act = PhantomData::<F>;
    match threads {
        Threads::One => run(InPlace { x, up, act }),
        Threads::All => {
            let chunks = x.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK));
            chunks.for_each(|(x, up)| run(InPlace { x, up, act }));
        }
    }
}

/// With y = f(x)·up and `grad` the gradient of y: writes y and the gradient of `up`, and makes `grad`
/// that of x, on as many threads as allowed.
pub(crate) fn backward_on<F: Function, T: Element>(
    threads: Threads,
    x: &[T],
    up: &[T],
    y: &mut [T],
    on_up: &mut [T],
    grad: &mut [T],
) {
    assert!([up.len(), y.len(), on_up.len(), grad.len()] == [x.len(); 4]);
    let act = PhantomData::<F>;
    let part = |(((x, up), y), (on_up, grad))| {
        run(Backward {
            x,
            up,
            y,
            on_up,
            grad,
            act,
        });
    };
    match threads {
        Threads::One => part((((x, up), y), (on_up, grad))),
        Threads::All => {
            let results = on_up.par_chunks_mut(CHUNK).zip(grad.par_chunks_mut(CHUNK));
            let args = x.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
            let chunks = args.zip(y.par_chunks_mut(CHUNK)).zip(results);
            chunks.for_each(part);
        }
    }
}

struct Gate<'a, F, T> {
    x: &'a [T],
    up: &'a [T],
    y: &'a mut [T],
    act: PhantomData<F>,
}

impl<F: Function, T: Element> WithSimd for Gate<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let args = self.x.chunks(lanes).zip(self.up.chunks(lanes));
        for ((x, up), y) in args.zip(self.y.chunks_mut(lanes)) {
            let value = F::value(Vector::<T, S>::load(simd, x));
            (value * Vector::load(simd, up)).store(y);
        }
    }
}

struct InPlace<'a, F, T> {
    x: &'a mut [T],
    up: &'a [T],
    act: PhantomData<F>,
}

impl<F: Function, T: Element> WithSimd for InPlace<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        for (x, up) in self.x.chunks_mut(lanes).zip(self.up.chunks(lanes)) {
            let value = F::value(Vector::<T, S>::load(simd, x));
            (value * Vector::load(simd, up)).store(x);
        }
    }
}

struct Backward<'a, F, T> {
    x: &'a [T],
    up: &'a [T],
    y: &'a mut [T],
    on_up: &'a mut [T],
    grad: &'a mut [T],
    act: PhantomData<F>,
}

impl<F: Function, T: Element> WithSimd for Backward<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let args = self.x.chunks(lanes).zip(self.up.chunks(lanes));
        let results = self.on_up.chunks_mut(lanes);
        let results = results.zip(self.grad.chunks_mut(lanes));
        let results = self.y.chunks_mut(lanes).zip(results);
        for ((x, up), (y, (on_up, on_x))) in args.zip(results) {
            let (value, slope) = F::both(Vector::<T, S>::load(simd, x));
            let (up, grad) = (Vector::load(simd, up), Vector::load(simd, on_x));
            (value * up).store(y);
            (value * grad).store(on_up);
            (slope * up * grad).store(on_x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::activation::{GeluErf, GeluTanh, Silu};
    use super::super::simd::testing::{assert_close, at_every_level, values};
    use super::*;

    /// σ's argument for both: x·σ(x), and GELU by the hyperbolic tangent as x·σ(2u).
    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn silu(x: f64) -> [f64; 2] {
        let s = sigmoid(x);
        [x * s, s * (1.0 + x * (1.0 - s))]
    }

    fn gelu(x: f64) -> [f64; 2] {
        let root = (8.0 / std::f64::consts::PI).sqrt();
        let s = sigmoid(root * (x + 0.044715 * x.powi(3)));
        let slope = root * (1.0 + 3.0 * 0.044715 * x * x);
        [x * s, s * (1.0 + x * (1.0 - s) * slope)]
    }

    fn check<F: Function, T: Element>(count: usize, f: fn(f64) -> [f64; 2], tolerance: f64) {
        let [x, up, grad] = [1, 2, 3].map(|seed| values::<T>(count, seed));
        let wide = |of: &dyn Fn([f64; 3], [f64; 2]) -> f64| -> Vec<f64> {
            let args = x.iter().zip(&up).zip(&grad);
            let args = args.map(|((x, up), grad)| [x.to_f64(), up.to_f64(), grad.to_f64()]);
            args.map(|args| of(args, f(args[0]))).collect()
        };
        let y = wide(&|[_, up, _], [value, _]| value * up);
        let on_up = wide(&|[_, _, grad], [value, _]| value * grad);
        let on_x = wide(&|[_, up, grad], [_, slope]| slope * up * grad);
        at_every_level(|level| {
            for threads in [Threads::One, Threads::All] {
                let what = format!("{count} {level:?} {threads:?}");
                let mut ours = vec![T::ZERO; count];
                gate_on::<F, T>(threads, &x, &up, &mut ours);
                assert_close(&what, &ours, &y, tolerance);
                let mut ours = x.clone();
                gate_in_place::<F, T>(threads, &mut ours, &up);
                assert_close(&what, &ours, &y, tolerance);
                let [mut value, mut of_up] = [(); 2].map(|()| vec![T::ZERO; count]);
                let mut of_x = grad.clone();
                backward_on::<F, T>(threads, &x, &up, &mut value, &mut of_up, &mut of_x);
                assert_close(&what, &value, &y, tolerance);
                assert_close(&what, &of_up, &on_up, tolerance);
                assert_close(&what, &of_x, &on_x, tolerance);
            }
        });
    }

    #[test]
    fn every_level_follows_the_formula() {
        for count in [0, 1, 7, 16, 33, 1000, 2 * CHUNK + 5] {
            check::<Silu, f32>(count, silu, 1e-6);
            check::<Silu, f64>(count, silu, 1e-13);
            check::<GeluTanh, f32>(count, gelu, 1e-6);
            check::<GeluTanh, f64>(count, gelu, 1e-13);
        }
    }

    /// GELU by the error function has no formula without one: against itself without a gate.
    #[test]
    fn a_gate_of_ones_is_the_function() {
        let x: Vec<f64> = values(99, 4);
        let ones = vec![1.0; 99];
        let [mut gated, mut plain] = [vec![0.0; 99], vec![0.0; 99]];
        gate_on::<GeluErf, f64>(Threads::One, &x, &ones, &mut gated);
        super::super::activation::value_on::<GeluErf, f64>(Threads::One, &x, &mut plain);
        assert_eq!(gated, plain);
    }
}

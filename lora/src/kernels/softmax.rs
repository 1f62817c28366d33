//! The softmax of rows.

use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Numbers that one task handles: enough to be worth a thread, few enough to stay in its cache.
const CHUNK: usize = 1 << 14;

/// y = softmax(x), row by row, on all threads.
pub(crate) fn forward<T: Element>(x: &[T], y: &mut [T], columns: usize) {
    struct Forward<'a, T> {
        x: &'a [T],
        y: &'a mut [T],
        columns: usize,
    }

    impl<T: Element> WithSimd for Forward<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let rows = self.x.chunks_exact(self.columns);
            for (x, y) in rows.zip(self.y.chunks_exact_mut(self.columns)) {
                let largest = largest(simd, x);
                y.copy_from_slice(x);
                let sum = exponentials(simd, y, largest);
                scale(simd, y, T::ONE / sum);
            }
        }
    }

    assert_eq!(x.len(), y.len());
    if x.is_empty() {
        return;
    }
    let chunk = rows_in_chunk(columns) * columns;
    let chunks = x.par_chunks(chunk).zip(y.par_chunks_mut(chunk));
    chunks.for_each(|(x, y)| run(Forward { x, y, columns }));
}

/// The gradient of x for y = softmax(x), y·(grad − Σ grad·y), row by row, on all threads.
pub(crate) fn backward<T: Element>(y: &[T], grad: &[T], on_x: &mut [T], columns: usize) {
    struct Backward<'a, T> {
        y: &'a [T],
        grad: &'a [T],
        on_x: &'a mut [T],
        columns: usize,
    }

    impl<T: Element> WithSimd for Backward<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let lanes = T::lanes::<S>();
            let rows = self.y.chunks_exact(self.columns);
            let rows = rows.zip(self.grad.chunks_exact(self.columns));
            let rows = rows.zip(self.on_x.chunks_exact_mut(self.columns));
            for ((y, grad), on_x) in rows {
                let along = Vector::splat(simd, dot(simd, y, grad));
                let args = y.chunks(lanes).zip(grad.chunks(lanes));
                for ((y, grad), on_x) in args.zip(on_x.chunks_mut(lanes)) {
                    let (y, grad) = (Vector::load(simd, y), Vector::load(simd, grad));
                    (y * (grad - along)).store(on_x);
                }
            }
        }
    }

    assert!(y.len() == grad.len() && y.len() == on_x.len());
    if y.is_empty() {
        return;
    }
    let chunk = rows_in_chunk(columns) * columns;
    let chunks = y.par_chunks(chunk).zip(grad.par_chunks(chunk));
    let chunks = chunks.zip(on_x.par_chunks_mut(chunk));
    chunks.for_each(|((y, grad), on_x)| {
        run(Backward {
            y,
            grad,
            on_x,
            columns,
        });
    });
}

fn rows_in_chunk(columns: usize) -> usize {
    (CHUNK / columns).max(1)
}

/// The largest number of a row; −∞ for an empty one.
#[inline(always)]
pub(crate) fn largest<T: Element, S: Simd>(simd: S, row: &[T]) -> T {
    let (vectors, rest) = T::raw_split::<S>(row);
    let lowest = T::of(f64::NEG_INFINITY);
    let largest = match vectors {
        [] => lowest,
        [first, others @ ..] => {
            let first = Vector::<T, S>::new(simd, *first);
            let others = others.iter().map(|&raw| Vector::new(simd, raw));
            others.fold(first, Vector::max).largest()
        }
    };
    rest.iter().fold(largest, |a, &b| if b > a { b } else { a })
}

/// e^(x − shift) in place of each x of a row. Returns their sum.
#[inline(always)]
pub(crate) fn exponentials<T: Element, S: Simd>(simd: S, row: &mut [T], shift: T) -> T {
    let shift = Vector::<T, S>::splat(simd, shift);
    let mut sum = Vector::zero(simd);
    for x in row.chunks_mut(T::lanes::<S>()) {
        (Vector::load(simd, x) - shift).exp().store(x);
        // Loaded again, with zeros: lanes beyond the end of the row must not count.
        sum = sum + Vector::load(simd, x);
    }
    sum.sum()
}

#[inline(always)]
pub(crate) fn scale<T: Element, S: Simd>(simd: S, row: &mut [T], factor: T) {
    let factor = Vector::<T, S>::splat(simd, factor);
    for x in row.chunks_mut(T::lanes::<S>()) {
        (Vector::load(simd, x) * factor).store(x);
    }
}

#[inline(always)]
pub(crate) fn dot<T: Element, S: Simd>(simd: S, a: &[T], b: &[T]) -> T {
    let lanes = T::lanes::<S>();
    let mut sum = Vector::<T, S>::zero(simd);
    for (a, b) in a.chunks(lanes).zip(b.chunks(lanes)) {
        sum = Vector::load(simd, a).mul_add(Vector::load(simd, b), sum);
    }
    sum.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::testing::at_every_level;

    #[test]
    fn every_level_computes_the_same() {
        for columns in [1, 3, 7, 16, 17, 65] {
            let x: Vec<f32> = (0..3 * columns)
                .map(|i| (i as f32 * 1.7).sin() * 9.0 - 200.0)
                .collect();
            let grad: Vec<f32> = x.iter().map(|x| (x * 3.1).cos()).collect();
            let exact: Vec<f64> = x
                .chunks(columns)
                .flat_map(|row| {
                    let row: Vec<f64> = row.iter().map(|&x| f64::from(x + 200.0).exp()).collect();
                    let sum: f64 = row.iter().sum();
                    row.into_iter().map(move |x| x / sum)
                })
                .collect();
            let mut on_exact = Vec::new();
            for (y, grad) in exact.chunks(columns).zip(grad.chunks(columns)) {
                let along: f64 = y.iter().zip(grad).map(|(y, &g)| y * f64::from(g)).sum();
                on_exact.extend(y.iter().zip(grad).map(|(y, &g)| y * (f64::from(g) - along)));
            }
            at_every_level(|level| {
                let (mut y, mut on_x) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                forward(&x, &mut y, columns);
                backward(&y, &grad, &mut on_x, columns);
                for (actual, exact) in [(y, &exact), (on_x, &on_exact)] {
                    for (a, e) in actual.iter().zip(exact) {
                        let error = (f64::from(*a) - e).abs();
                        assert!(error < 1e-6, "{level:?} {columns}: {a} for {e}");
                    }
                }
            });
        }
    }

    #[test]
    fn nan_is_not_lost() {
        at_every_level(|level| {
            for at in [0, 15, 16, 18] {
                let mut x = [1f32; 19];
                x[at] = f32::NAN;
                let mut y = [0.0; 19];
                forward(&x, &mut y, 19);
                assert!(y.iter().all(|y| y.is_nan()), "{level:?} {at}: {y:?}");
            }
        });
    }
}

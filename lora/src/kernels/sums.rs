//! Sums over rows and over columns.
//!
//! Many numbers are summed in blocks, and the blocks' sums in f64, so that rounding errors do not
//! grow with the count. The split does not depend on the number of threads, so neither do the
//! results.

use super::CHUNK;
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Vectors of a block, which are summed in their own precision.
const BLOCK: usize = 128;

/// Vectors that are summed side by side: in a single chain each addition would wait for the one
/// before.
const SIDE: usize = 4;

/// Σ x
#[inline(always)]
pub(super) fn sum<T: Element, S: Simd>(simd: S, x: &[T]) -> f64 {
    let mut total = 0.0;
    for x in x.chunks(BLOCK * T::lanes::<S>()) {
        let (x, rest) = T::raw_split::<S>(x);
        let mut sums = [Vector::<T, S>::zero(simd); SIDE];
        let (groups, left) = x.as_chunks::<SIDE>();
        for group in groups {
            for (sum, x) in sums.iter_mut().zip(group) {
                *sum = *sum + Vector::new(simd, *x);
            }
        }
        for (sum, x) in sums.iter_mut().zip(left) {
            *sum = *sum + Vector::new(simd, *x);
        }
        if !rest.is_empty() {
            sums[SIDE - 1] = sums[SIDE - 1] + Vector::load(simd, rest);
        }
        total += joined(sums);
    }
    total
}

/// Σ (x − mean)²
#[inline(always)]
pub(super) fn squares<T: Element, S: Simd>(simd: S, x: &[T], mean: T) -> f64 {
    let square = |x: T::Raw<S>, mean: Vector<T, S>, sum: &mut Vector<T, S>| {
        let x = Vector::new(simd, x) - mean;
        *sum = x.mul_add(x, *sum);
    };
    let all = Vector::splat(simd, mean);
    let mut total = 0.0;
    for x in x.chunks(BLOCK * T::lanes::<S>()) {
        let (x, rest) = T::raw_split::<S>(x);
        let mut sums = [Vector::<T, S>::zero(simd); SIDE];
        let (groups, left) = x.as_chunks::<SIDE>();
        for group in groups {
            for (sum, x) in sums.iter_mut().zip(group) {
                square(*x, all, sum);
            }
        }
        for (sum, x) in sums.iter_mut().zip(left) {
            square(*x, all, sum);
        }
        if !rest.is_empty() {
            // The lanes past the end are 0 less a mean of 0.
            let ones = Vector::load(simd, &[T::ONE; 16][..rest.len()]);
            square(
                Vector::<T, S>::load(simd, rest).raw(),
                all * ones,
                &mut sums[SIDE - 1],
            );
        }
        total += joined(sums);
    }
    total
}

/// Σ g and Σ g·(x − mean). `weigh` makes each vector of g from a vector of the gradient and the
/// vector's index.
#[inline(always)]
pub(super) fn centred_pair<T: Element, S: Simd>(
    simd: S,
    x: &[T],
    grad: &[T],
    mean: T,
    weigh: impl Fn(usize, Vector<T, S>) -> Vector<T, S>,
) -> (f64, f64) {
    let mean = Vector::splat(simd, mean);
    let step = |x: Vector<T, S>, g: Vector<T, S>, sums: &mut [Vector<T, S>; 2]| {
        sums[0] = sums[0] + g;
        sums[1] = g.mul_add(x - mean, sums[1]);
    };
    let block = BLOCK * T::lanes::<S>();
    let (mut total, mut along, mut index) = (0.0, 0.0, 0);
    for (x, grad) in x.chunks(block).zip(grad.chunks(block)) {
        let (x, x_rest) = T::raw_split::<S>(x);
        let (grad, grad_rest) = T::raw_split::<S>(grad);
        let (mut even, mut odd) = ([Vector::zero(simd); 2], [Vector::zero(simd); 2]);
        let ((pairs, x), (grads, grad)) = (x.as_chunks::<2>(), grad.as_chunks::<2>());
        for (x, grad) in pairs.iter().zip(grads) {
            let g = weigh(index, Vector::new(simd, grad[0]));
            step(Vector::new(simd, x[0]), g, &mut even);
            let g = weigh(index + 1, Vector::new(simd, grad[1]));
            step(Vector::new(simd, x[1]), g, &mut odd);
            index += 2;
        }
        if let ([x], [grad]) = (x, grad) {
            let g = weigh(index, Vector::new(simd, *grad));
            step(Vector::new(simd, *x), g, &mut even);
            index += 1;
        }
        if !x_rest.is_empty() {
            // Past the end the gradient is 0.
            let g = weigh(index, Vector::load(simd, grad_rest));
            step(Vector::load(simd, x_rest), g, &mut odd);
        }
        total += (even[0] + odd[0]).sum().to_f64();
        along += (even[1] + odd[1]).sum().to_f64();
    }
    (total, along)
}

#[inline(always)]
fn joined<T: Element, S: Simd>([a, b, c, d]: [Vector<T, S>; SIDE]) -> f64 {
    ((a + b) + (c + d)).sum().to_f64()
}

/// Adds the sums over the rows of grad·x̂ to `products` and those of grad to `totals`.
///
/// With `stats`, the mean and the factor of each row, x̂ = (x − mean)·factor; else x̂ = x.
fn add_columns<T: Element>(
    x: &[T],
    grad: &[T],
    stats: Option<&[T]>,
    products: &mut [T],
    totals: &mut [T],
) {
    struct Columns<'a, T>(&'a [T], &'a [T], Option<&'a [T]>, &'a mut [T], &'a mut [T]);

    impl<T: Element> WithSimd for Columns<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(x, grad, stats, products, totals) = self;
            let width = products.len();
            let (products, products_rest) = T::raw_split_mut::<S>(products);
            let (totals, totals_rest) = T::raw_split_mut::<S>(totals);
            let rows = x.chunks_exact(width).zip(grad.chunks_exact(width));
            for (row, (x, grad)) in rows.enumerate() {
                let (mean, factor) = match stats {
                    Some(stats) => (stats[2 * row], stats[2 * row + 1]),
                    None => (T::ZERO, T::ONE),
                };
                let (mean, factor) = (Vector::splat(simd, mean), Vector::splat(simd, factor));
                let product = |x: Vector<T, S>, grad: Vector<T, S>, sum: Vector<T, S>| {
                    ((x - mean) * factor).mul_add(grad, sum)
                };
                let (x, x_rest) = T::raw_split::<S>(x);
                let (grad, grad_rest) = T::raw_split::<S>(grad);
                let columns = products.iter_mut().zip(totals.iter_mut());
                for ((x, grad), (products, totals)) in x.iter().zip(grad).zip(columns) {
                    let (x, grad) = (Vector::new(simd, *x), Vector::new(simd, *grad));
                    *products = product(x, grad, Vector::new(simd, *products)).raw();
                    *totals = (grad + Vector::new(simd, *totals)).raw();
                }
                if !x_rest.is_empty() {
                    let (x, grad) = (Vector::load(simd, x_rest), Vector::load(simd, grad_rest));
                    product(x, grad, Vector::load(simd, products_rest)).store(products_rest);
                    (grad + Vector::load(simd, totals_rest)).store(totals_rest);
                }
            }
        }
    }

    if products.is_empty() {
        return;
    }
    assert!(x.len() == grad.len() && products.len() == totals.len());
    assert!(stats.is_none_or(|stats| stats.len() == x.len() / products.len() * 2));
    run(Columns(x, grad, stats, products, totals));
}

/// The sums of [`add_columns`] over rows of `width` numbers, on all threads.
pub(crate) fn columns<T: Element>(
    x: &[T],
    grad: &[T],
    stats: Option<&[T]>,
    width: usize,
) -> (Vec<T>, Vec<T>) {
    /// Parts that are summed on their own: a fixed number, whatever the number of threads.
    const PARTS: usize = 32;

    if width == 0 {
        return (Vec::new(), Vec::new());
    }
    let block = (CHUNK / width).max(16);
    let part = (x.len() / width).div_ceil(PARTS).max(block);
    let part_of = |index: usize| {
        let mut sums = vec![0.0; 2 * width];
        let rows = index * part..(x.len() / width).min((index + 1) * part);
        for start in rows.clone().step_by(block) {
            let rows = start..rows.end.min(start + block);
            let stats = stats.map(|stats| &stats[2 * rows.start..2 * rows.end]);
            let values = rows.start * width..rows.end * width;
            let mut sum = vec![T::ZERO; 2 * width];
            let (products, totals) = sum.split_at_mut(width);
            add_columns(&x[values.clone()], &grad[values], stats, products, totals);
            for (sums, sum) in sums.iter_mut().zip(sum) {
                *sums += sum.to_f64();
            }
        }
        sums
    };
    let parts = (x.len() / width).div_ceil(part);
    let parts: Vec<Vec<f64>> = (0..parts).into_par_iter().map(part_of).collect();
    let total = |column: usize| T::of(parts.iter().map(|part| part[column]).sum());
    (
        (0..width).map(total).collect(),
        (width..2 * width).map(total).collect(),
    )
}

/// Σ grad and Σ grad·(x − mean) of each segment of `inner` numbers, on all threads. `mean` gives
/// the mean of a segment.
pub(super) fn segments<T: Element>(
    x: &[T],
    grad: &[T],
    inner: usize,
    mean: impl Fn(usize) -> T + Sync,
) -> Vec<(f64, f64)> {
    struct Segments<'a, T, F>(&'a [T], &'a [T], usize, F, &'a mut [(f64, f64)]);

    impl<T: Element, F: Fn(usize) -> T> WithSimd for Segments<'_, T, F> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(x, grad, inner, mean, sums) = self;
            let segments = x.chunks_exact(inner).zip(grad.chunks_exact(inner));
            for (index, ((x, grad), sums)) in segments.zip(sums).enumerate() {
                *sums = centred_pair(
                    simd,
                    x,
                    grad,
                    mean(index),
                    #[inline(always)]
                    |_, g| g,
                );
            }
        }
    }

    if inner == 0 {
        return Vec::new();
    }
    let count = (CHUNK / inner).max(1);
    let mut sums = vec![(0.0, 0.0); x.len() / inner];
    let chunks = x
        .par_chunks(count * inner)
        .zip(grad.par_chunks(count * inner));
    let chunks = chunks.zip(sums.par_chunks_mut(count)).enumerate();
    chunks.for_each(|(chunk, ((x, grad), sums))| {
        let mean = |index| mean(chunk * count + index);
        run(Segments(x, grad, inner, mean, sums));
    });
    sums
}

//! Layer and root-mean-square normalisation of rows.
//!
//! The functions on slices run on the thread that calls them, for a caller that has the rows in its
//! cache; [`forward`] and [`backward`] run on all threads.

use super::simd::{Element, Vector, run};
use super::sums::{add_columns, centred_pair, squares, sum};
use super::{CHUNK, buffer::buffer};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// y = (x − mean) / √(variance + eps) · weight + bias for each row of `width` numbers.
///
/// Without `remove_mean` the mean counts as 0, so that the variance is the mean of squares. A missing
/// weight is 1, a missing bias 0. `stats` gets the mean and 1 / √(variance + eps) of each row, two
/// numbers a row, from which the backward pass computes the normalised row again.
pub(crate) fn forward_rows<T: Element>(
    x: &[T],
    y: &mut [T],
    width: usize,
    eps: f64,
    remove_mean: bool,
    weight: Option<&[T]>,
    bias: Option<&[T]>,
    stats: &mut [T],
) {
    if width == 0 {
        return;
    }
    assert_eq!(x.len(), y.len());
    assert_eq!(x.len() / width * 2, stats.len());
    run(Forward {
        x,
        y,
        width,
        eps,
        remove_mean,
        weight,
        bias,
        stats,
    });
}

struct Forward<'a, T> {
    x: &'a [T],
    y: &'a mut [T],
    width: usize,
    eps: f64,
    remove_mean: bool,
    weight: Option<&'a [T]>,
    bias: Option<&'a [T]>,
    stats: &'a mut [T],
}

impl<T: Element> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.width;
        let weight = whole_vectors(simd, self.weight, width, T::ONE);
        let bias = whole_vectors(simd, self.bias, width, T::ZERO);
        let rows = self.x.chunks_exact(width);
        let rows = rows.zip(self.y.chunks_exact_mut(width));
        for ((x, y), stats) in rows.zip(self.stats.chunks_exact_mut(2)) {
            let mean = match self.remove_mean {
                true => T::of(sum(simd, x) / width as f64),
                false => T::ZERO,
            };
            let variance = squares(simd, x, mean) / width as f64;
            let inverse = T::of(1.0 / (variance + self.eps).sqrt());
            stats.copy_from_slice(&[mean, inverse]);

            let (mean, inverse) = (Vector::splat(simd, mean), Vector::splat(simd, inverse));
            let value =
                |x: Vector<T, S>, weight, bias| ((x - mean) * inverse).mul_add(weight, bias);
            let (x, x_rest) = T::raw_split::<S>(x);
            let (y, y_rest) = T::raw_split_mut::<S>(y);
            let whole = x.len();
            for (((x, y), weight), bias) in x.iter().zip(y).zip(&weight).zip(&bias) {
                *y = value(Vector::new(simd, *x), *weight, *bias).raw();
            }
            if !x_rest.is_empty() {
                value(Vector::load(simd, x_rest), weight[whole], bias[whole]).store(y_rest);
            }
        }
    }
}

/// The gradient of the rows, from the gradient of what [`forward_rows`] makes of them with `stats`.
///
/// With g = grad·weight and x̂ the normalised row it is (g − mean(g) − x̂·mean(g·x̂)) / √(variance +
/// eps), without mean(g) if the mean was not removed.
pub(crate) fn backward_rows<T: Element>(
    x: &[T],
    grad: &[T],
    stats: &[T],
    weight: Option<&[T]>,
    out: &mut [T],
    width: usize,
    remove_mean: bool,
) {
    if width == 0 {
        return;
    }
    assert!(x.len() == out.len() && grad.len() == out.len());
    assert_eq!(x.len() / width * 2, stats.len());
    run(Backward {
        x,
        grad,
        stats,
        weight,
        out,
        width,
        remove_mean,
    });
}

struct Backward<'a, T> {
    x: &'a [T],
    grad: &'a [T],
    stats: &'a [T],
    weight: Option<&'a [T]>,
    out: &'a mut [T],
    width: usize,
    remove_mean: bool,
}

impl<T: Element> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.width;
        let weight = whole_vectors(simd, self.weight, width, T::ONE);
        let rows = self
            .x
            .chunks_exact(width)
            .zip(self.grad.chunks_exact(width));
        let rows = rows.zip(self.out.chunks_exact_mut(width));
        for (((x, grad), out), stats) in rows.zip(self.stats.chunks_exact(2)) {
            let (mean, inverse) = (stats[0], stats[1]);
            let (total, along) = centred_pair(
                simd,
                x,
                grad,
                mean,
                #[inline(always)]
                |index, grad| grad * weight[index],
            );
            let (shift, slope) = corrections(total, along, inverse, width, self.remove_mean);

            let (mean, inverse) = (Vector::splat(simd, mean), Vector::splat(simd, inverse));
            let (shift, slope) = (Vector::splat(simd, shift), Vector::splat(simd, slope));
            let value = |x: Vector<T, S>, grad: Vector<T, S>, weight| {
                (x - mean).mul_add(slope, (grad * weight).mul_add(inverse, shift))
            };
            let (x, x_rest) = T::raw_split::<S>(x);
            let (grad, grad_rest) = T::raw_split::<S>(grad);
            let (out, out_rest) = T::raw_split_mut::<S>(out);
            let whole = x.len();
            for (((x, grad), out), weight) in x.iter().zip(grad).zip(out).zip(&weight) {
                *out = value(Vector::new(simd, *x), Vector::new(simd, *grad), *weight).raw();
            }
            if !x_rest.is_empty() {
                let (x, grad) = (Vector::load(simd, x_rest), Vector::load(simd, grad_rest));
                value(x, grad, weight[whole]).store(out_rest);
            }
        }
    }
}

/// What is added to g / √(variance + eps), and the factor of x − mean, in the gradient of `count`
/// numbers that were normalised together; from Σ g and Σ g·(x − mean).
pub(super) fn corrections<T: Element>(
    total: f64,
    along: f64,
    inverse: T,
    count: usize,
    remove_mean: bool,
) -> (T, T) {
    let (inverse, count) = (inverse.to_f64(), count as f64);
    let shift = match remove_mean {
        true => -total / count * inverse,
        false => 0.0,
    };
    (T::of(shift), T::of(-along / count * inverse.powi(3)))
}

/// Adds the sums over the rows of grad·x̂ and of grad, the gradients of weight and bias, to
/// `on_weight` and `on_bias`; x̂ are the normalised rows.
pub(crate) fn weight_grads<T: Element>(
    x: &[T],
    grad: &[T],
    stats: &[T],
    on_weight: &mut [T],
    on_bias: &mut [T],
) {
    add_columns(x, grad, Some(stats), on_weight, on_bias);
}

/// The row as vectors, the last filled up with zeros; `default` for a missing one.
#[inline(always)]
fn whole_vectors<T: Element, S: Simd>(
    simd: S,
    row: Option<&[T]>,
    width: usize,
    default: T,
) -> Vec<Vector<T, S>> {
    let lanes = T::lanes::<S>();
    match row {
        Some(row) => {
            assert_eq!(row.len(), width);
            row.chunks(lanes)
                .map(|part| Vector::load(simd, part))
                .collect()
        }
        None => vec![Vector::splat(simd, default); width.div_ceil(lanes)],
    }
}

/// Rows that one task handles.
fn rows_of_a_chunk(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// [`forward_rows`] on all threads: the values and the stats.
pub(crate) fn forward<T: Element>(
    x: &[T],
    width: usize,
    eps: f64,
    remove_mean: bool,
    weight: Option<&[T]>,
    bias: Option<&[T]>,
) -> (Vec<T>, Vec<T>) {
    let rows = rows_of_a_chunk(width);
    let mut y = buffer(x.len());
    let mut stats = buffer(x.len() / width.max(1) * 2);
    let chunk = (rows * width).max(1);
    let chunks = x.par_chunks(chunk).zip(y.par_chunks_mut(chunk));
    let chunks = chunks.zip(stats.par_chunks_mut(2 * rows));
    chunks.for_each(|((x, y), stats)| {
        forward_rows(x, y, width, eps, remove_mean, weight, bias, stats);
    });
    (y, stats)
}

/// [`backward_rows`] on all threads.
pub(crate) fn backward<T: Element>(
    x: &[T],
    grad: &[T],
    stats: &[T],
    weight: Option<&[T]>,
    width: usize,
    remove_mean: bool,
) -> Vec<T> {
    let rows = rows_of_a_chunk(width);
    let mut out = buffer(x.len());
    let chunk = (rows * width).max(1);
    let chunks = x.par_chunks(chunk).zip(grad.par_chunks(chunk));
    let chunks = chunks.zip(out.par_chunks_mut(chunk));
    let chunks = chunks.zip(stats.par_chunks(2 * rows));
    chunks.for_each(|(((x, grad), out), stats)| {
        backward_rows(x, grad, stats, weight, out, width, remove_mean);
    });
    out
}

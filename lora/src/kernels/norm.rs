//! Layer and root-mean-square normalisation of rows.
//!
//! The functions on rows run on the thread that calls them, for a caller that has the rows in its
//! cache; [`forward`] and [`backward`] run on all threads.

use super::CHUNK;
use super::buffer::{buffer, room};
use super::simd::{Element, Vector, run};
use super::sums::{centred_pair, squares, sum};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// y = (x − mean) / √(variance + eps) · weight + bias for each row of `width` numbers.
///
/// Without `remove_mean` the mean counts as 0, so that the variance is the mean of squares. A
/// missing weight is 1, a missing bias 0. `stats` gets the mean and 1 / √(variance + eps) of each
/// row, from which the backward pass computes the normalised row again.
#[allow(clippy::too_many_arguments)] // Slices of one row each, and how to normalise them.
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
    assert_eq!(x.len() * 2, stats.len() * width);
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

/// The gradient of the rows, from the gradient of [`forward_rows`]'s result and from its `stats`.
///
/// With g = grad·weight and x̂ the normalised row it is
/// (g − mean(g) − x̂·mean(g·x̂)) / √(variance + eps), without mean(g) if the mean was not removed.
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
    assert_eq!(x.len() * 2, stats.len() * width);
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

/// For the gradient of `count` numbers that were normalised together, from Σ g and Σ g·(x − mean):
/// the addend of g / √(variance + eps), and the factor of x − mean.
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
    assert!(x.is_empty() || x.len().is_multiple_of(width));
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

/// How often larger than the weight a bias may be where [`backward_of_result`] computes: so many times
/// grows the rounding of the result.
const LARGEST_BIAS: f64 = 8.0;

/// Whether the normalised rows can be computed from the result: not where a weight is 0, or so small
/// beside its bias that the result has lost them.
pub(crate) fn can_invert<T: Element>(weight: &[T], bias: Option<&[T]>) -> bool {
    let far_from_zero = |weight: f64| weight.abs() > 1e-10 && weight.is_finite();
    let fits = |(index, weight): (usize, &T)| {
        let bias = bias.map_or(0.0, |bias| bias[index].to_f64());
        let weight = weight.to_f64();
        far_from_zero(weight) && bias.abs() <= LARGEST_BIAS * weight.abs()
    };
    weight.iter().enumerate().all(fits)
}

/// As [`backward`], from the result y in place of x, for weights that [`can_invert`].
pub(crate) fn backward_of_result<T: Element>(
    y: &[T],
    grad: &[T],
    stats: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    remove_mean: bool,
) -> Vec<T> {
    let width = weight.len();
    let rows = rows_of_a_chunk(width);
    let mut out = buffer(y.len());
    let chunk = (rows * width).max(1);
    let chunks = y.par_chunks(chunk).zip(grad.par_chunks(chunk));
    let chunks = chunks.zip(out.par_chunks_mut(chunk));
    let chunks = chunks.zip(stats.par_chunks(2 * rows));
    let inverses: Vec<T> = weight.iter().map(|&weight| T::ONE / weight).collect();
    chunks.for_each_init(Vec::new, |memory, (((y, grad), out), stats)| {
        let x = room(memory, y.len());
        run(Invert {
            x,
            y,
            stats,
            inverses: &inverses,
            bias,
        });
        backward_rows(x, grad, stats, Some(weight), out, width, remove_mean);
    });
    out
}

/// x = (y − bias) / weight · deviation + mean, row by row.
struct Invert<'a, T> {
    x: &'a mut [T],
    y: &'a [T],
    stats: &'a [T],
    /// 1 / weight
    inverses: &'a [T],
    bias: Option<&'a [T]>,
}

impl<T: Element> WithSimd for Invert<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (width, lanes) = (self.inverses.len(), T::lanes::<S>());
        let bias = whole_vectors(simd, self.bias, width, T::ZERO);
        let inverses = whole_vectors(simd, Some(self.inverses), width, T::ONE);
        let rows = self.x.chunks_exact_mut(width);
        let rows = rows.zip(self.y.chunks_exact(width));
        for ((x, y), stats) in rows.zip(self.stats.chunks_exact(2)) {
            let mean = Vector::<T, S>::splat(simd, stats[0]);
            let deviation = Vector::<T, S>::splat(simd, T::ONE / stats[1]);
            let columns = x.chunks_mut(lanes).zip(y.chunks(lanes));
            for (((x, y), inverse), bias) in columns.zip(&inverses).zip(&bias) {
                let hat = (Vector::load(simd, y) - *bias) * *inverse;
                hat.mul_add(deviation, mean).store(x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::testing::{assert_close, at_every_level, values};
    use super::super::sums;
    use super::*;

    const EPS: f64 = 1e-5;

    /// Values, stats, the gradients of input, weight and bias, one number after the other.
    fn expected([x, grad, weight, bias]: [&[f64]; 4], remove_mean: bool) -> [Vec<f64>; 5] {
        let width = weight.len();
        let n = width as f64;
        let mut out = [const { Vec::new() }; 5];
        out[3] = vec![0.0; width];
        out[4] = vec![0.0; width];
        for (x, grad) in x.chunks(width).zip(grad.chunks(width)) {
            let mean = if remove_mean {
                x.iter().sum::<f64>() / n
            } else {
                0.0
            };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let inverse = 1.0 / (variance + EPS).sqrt();
            out[1].extend([mean, inverse]);
            let hat: Vec<f64> = x.iter().map(|x| (x - mean) * inverse).collect();
            let g: Vec<f64> = grad.iter().zip(weight).map(|(g, w)| g * w).collect();
            let total = if remove_mean {
                g.iter().sum::<f64>() / n
            } else {
                0.0
            };
            let along = g.iter().zip(&hat).map(|(g, h)| g * h).sum::<f64>() / n;
            for i in 0..width {
                out[0].push(hat[i] * weight[i] + bias[i]);
                out[2].push((g[i] - total - hat[i] * along) * inverse);
                out[3][i] += grad[i] * hat[i];
                out[4][i] += grad[i];
            }
        }
        out
    }

    fn check<T: Element>(rows: usize, width: usize, tolerance: f64) {
        // Not centred, so that the mean matters.
        let x: Vec<T> = values(rows * width, 1);
        let x: Vec<T> = x.into_iter().map(|x| x + T::of(2.0)).collect();
        let grad: Vec<T> = values(rows * width, 2);
        let (weight, bias): (Vec<T>, Vec<T>) = (values(width, 3), values(width, 4));
        // Far from zero, of either sign.
        let weight = weight.iter().map(|&weight| match weight.to_f64() {
            w if w < 0.0 => weight - T::of(0.5),
            _ => weight + T::of(0.5),
        });
        let weight: Vec<T> = weight.collect();
        let wide = |values: &[T]| values.iter().map(|v| v.to_f64()).collect::<Vec<_>>();
        let args = [wide(&x), wide(&grad), wide(&weight), wide(&bias)];
        let [ones, zeros] = [vec![1.0; width], vec![0.0; width]];
        at_every_level(|level| {
            for (remove_mean, affine) in [(true, true), (true, false), (false, true)] {
                let what = format!("{rows}x{width} {level:?} {remove_mean} {affine}");
                let (weight, bias) = (affine.then_some(&weight[..]), affine.then_some(&bias[..]));
                let args = match affine {
                    true => args.each_ref().map(|v| &v[..]),
                    false => [&args[0], &args[1], &ones, &zeros].map(|v| &v[..]),
                };
                let expected = expected(args, remove_mean);
                let (y, stats) = forward(&x, width, EPS, remove_mean, weight, bias);
                assert_close(&what, &y, &expected[0], tolerance);
                assert_close(&what, &stats, &expected[1], tolerance);
                let on_x = backward(&x, &grad, &stats, weight, width, remove_mean);
                // In units of the row's deviation.
                let scaled = on_x.iter().enumerate();
                let scaled = scaled.map(|(i, g)| *g / stats[i / width * 2 + 1]);
                let exact = expected[2].iter().enumerate();
                let exact = exact.map(|(i, g)| g / expected[1][i / width * 2 + 1]);
                let (scaled, exact): (Vec<T>, Vec<f64>) = (scaled.collect(), exact.collect());
                assert_close(&what, &scaled, &exact, tolerance);
                if let Some(weight) = weight {
                    assert!(can_invert(weight, bias));
                    let again = backward_of_result(&y, &grad, &stats, weight, bias, remove_mean);
                    let scaled = again.iter().enumerate();
                    let scaled: Vec<T> =
                        scaled.map(|(i, g)| *g / stats[i / width * 2 + 1]).collect();
                    assert_close(&what, &scaled, &exact, 4.0 * tolerance);
                }
                let (on_weight, on_bias) = sums::columns(&x, &grad, Some(&stats), width);
                assert_close(&what, &on_weight, &expected[3], 3.0 * tolerance);
                assert_close(&what, &on_bias, &expected[4], 3.0 * tolerance);
            }
        });
    }

    #[test]
    fn every_level_follows_the_formula() {
        for width in [1, 3, 7, 13, 17, 32, 96, 1000, 5000] {
            for rows in [1, 5, 200] {
                check::<f32>(rows, width, 2e-6);
                check::<f64>(rows, width, 1e-13);
            }
        }
    }

    #[test]
    fn weights_that_hide_the_row_cannot_be_inverted() {
        assert!(can_invert(&[1f32, -0.5], Some(&[8.0, 4.0])));
        assert!(can_invert(&[1e-3f32], None));
        assert!(!can_invert(&[1f32, 0.0], None));
        assert!(!can_invert(&[1f32, -0.5], Some(&[8.0, 4.1])));
        assert!(!can_invert(&[f32::NAN], None));
        assert!(!can_invert(&[1f32], Some(&[f32::NAN])));
    }

    #[test]
    fn nothing_is_normalised_to_nothing() {
        let none: [f32; 0] = [];
        for width in [0, 3] {
            let (y, stats) = forward(&none, width, EPS, true, None, None);
            assert!(y.is_empty() && stats.is_empty());
            assert!(backward(&none, &none, &none, None, width, true).is_empty());
            let (on_weight, on_bias) = sums::columns(&none, &none, Some(&none), width);
            assert_eq!((on_weight, on_bias), (vec![0.0; width], vec![0.0; width]));
        }
    }
}

//! Group normalisation: rows of several channels, normalised together, with a weight and a bias for
//! each channel.

use super::affine::shifted;
use super::buffer::buffer;
use super::norm::corrections;
use super::simd::{Element, Vector, run};
use super::sums::{self, squares, sum};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// The shape of an input, (batch, groups·channels, inner).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    pub(crate) groups: usize,
    /// Channels in a group.
    pub(crate) channels: usize,
    pub(crate) inner: usize,
}

impl Groups {
    /// Numbers that are normalised together.
    fn width(self) -> usize {
        self.channels * self.inner
    }

    /// The channels of a row, one group of one example.
    fn channels_of(self, row: usize) -> std::ops::Range<usize> {
        let first = row % self.groups * self.channels;
        first..first + self.channels
    }
}

/// The values, and the mean and 1 / √(variance + eps) of each group of each example, on all
/// threads.
pub(crate) fn forward<T: Element>(
    x: &[T],
    weight: &[T],
    bias: &[T],
    shape: Groups,
    eps: f64,
) -> (Vec<T>, Vec<T>) {
    struct Row<'a, T> {
        x: &'a [T],
        y: &'a mut [T],
        weight: &'a [T],
        bias: &'a [T],
        stats: &'a mut [T],
        inner: usize,
        eps: f64,
    }

    impl<T: Element> WithSimd for Row<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let count = self.x.len() as f64;
            let mean = T::of(sum(simd, self.x) / count);
            let variance = squares(simd, self.x, mean) / count;
            let inverse = T::of(1.0 / (variance + self.eps).sqrt());
            self.stats.copy_from_slice(&[mean, inverse]);
            let channels = self.x.chunks_exact(self.inner);
            let channels = channels.zip(self.y.chunks_exact_mut(self.inner));
            for ((x, y), (weight, bias)) in channels.zip(self.weight.iter().zip(self.bias)) {
                shifted(simd, x, mean, inverse * *weight, *bias, y);
            }
        }
    }

    let width = shape.width();
    let mut y = buffer(x.len());
    if x.is_empty() {
        return (y, Vec::new());
    }
    assert!(x.len().is_multiple_of(width * shape.groups));
    let mut stats = buffer(x.len() / width * 2);
    let rows = x.par_chunks(width).zip(y.par_chunks_mut(width));
    let rows = rows.zip(stats.par_chunks_mut(2)).enumerate();
    rows.for_each(|(row, ((x, y), stats))| {
        let channels = shape.channels_of(row);
        run(Row {
            x,
            y,
            weight: &weight[channels.clone()],
            bias: &bias[channels],
            stats,
            inner: shape.inner,
            eps,
        });
    });
    (y, stats)
}

/// The gradients of a group normalisation.
pub(crate) struct Grads<T> {
    pub(crate) on_x: Vec<T>,
    pub(crate) on_weight: Vec<T>,
    pub(crate) on_bias: Vec<T>,
}

/// The gradients from `stats`, on all threads. Without `on_x` that of the input stays empty.
pub(crate) fn backward<T: Element>(
    x: &[T],
    grad: &[T],
    weight: &[T],
    stats: &[T],
    shape: Groups,
    on_x: bool,
) -> Grads<T> {
    let Groups {
        channels, inner, ..
    } = shape;
    let mean = |segment| stats[segment / channels * 2];
    let sums = sums::segments(x, grad, inner, mean);
    let (mut on_weight, mut on_bias) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
    for (segment, (total, along)) in sums.iter().enumerate() {
        let inverse = stats[segment / channels * 2 + 1].to_f64();
        on_weight[segment % weight.len()] += along * inverse;
        on_bias[segment % weight.len()] += total;
    }
    let rounded = |sums: Vec<f64>| sums.into_iter().map(T::of).collect();
    let on_x = match on_x {
        true => on_input(x, grad, weight, stats, shape, &sums),
        false => Vec::new(),
    };
    Grads {
        on_x,
        on_weight: rounded(on_weight),
        on_bias: rounded(on_bias),
    }
}

/// The input's gradient, from the sums of grad and of grad·(x − mean) of each channel.
fn on_input<T: Element>(
    x: &[T],
    grad: &[T],
    weight: &[T],
    stats: &[T],
    shape: Groups,
    sums: &[(f64, f64)],
) -> Vec<T> {
    /// out = (x − mean)·slope + grad·scale + shift
    struct Channel<'a, T> {
        x: &'a [T],
        grad: &'a [T],
        out: &'a mut [T],
        mean: T,
        slope: T,
        scale: T,
        shift: T,
    }

    impl<T: Element> WithSimd for Channel<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (mean, slope) = (
                Vector::splat(simd, self.mean),
                Vector::splat(simd, self.slope),
            );
            let (scale, shift) = (
                Vector::splat(simd, self.scale),
                Vector::splat(simd, self.shift),
            );
            let value = |x: Vector<T, S>, grad: Vector<T, S>| {
                (x - mean).mul_add(slope, grad.mul_add(scale, shift))
            };
            let (x, x_rest) = T::raw_split::<S>(self.x);
            let (grad, grad_rest) = T::raw_split::<S>(self.grad);
            let (out, out_rest) = T::raw_split_mut::<S>(self.out);
            for ((x, grad), out) in x.iter().zip(grad).zip(out) {
                *out = value(Vector::new(simd, *x), Vector::new(simd, *grad)).raw();
            }
            if !x_rest.is_empty() {
                value(Vector::load(simd, x_rest), Vector::load(simd, grad_rest)).store(out_rest);
            }
        }
    }

    let (width, inner) = (shape.width(), shape.inner);
    let mut out = buffer(x.len());
    if x.is_empty() {
        return out;
    }
    let rows = x.par_chunks(width).zip(grad.par_chunks(width));
    let rows = rows.zip(out.par_chunks_mut(width));
    let rows = rows.zip(sums.par_chunks(shape.channels)).enumerate();
    rows.for_each(|(row, (((x, grad), out), sums))| {
        let weight = &weight[shape.channels_of(row)];
        let (mean, inverse) = (stats[2 * row], stats[2 * row + 1]);
        let (mut total, mut along) = (0.0, 0.0);
        for (sums, weight) in sums.iter().zip(weight) {
            total += sums.0 * weight.to_f64();
            along += sums.1 * weight.to_f64();
        }
        let (shift, slope) = corrections(total, along, inverse, width, true);
        let parts = x.chunks_exact(inner).zip(grad.chunks_exact(inner));
        let parts = parts.zip(out.chunks_exact_mut(inner));
        for (((x, grad), out), weight) in parts.zip(weight) {
            run(Channel {
                x,
                grad,
                out,
                mean,
                slope,
                scale: inverse * *weight,
                shift,
            });
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::super::simd::testing::{assert_close, at_every_level, values};
    use super::super::{norm, sums};
    use super::*;

    /// As a norm of rows with the weight of each number.
    fn check<T: Element>(batch: usize, shape: Groups, tolerance: f64) {
        let Groups {
            groups,
            channels,
            inner,
        } = shape;
        let (all, width) = (groups * channels, shape.width());
        let count = batch * groups * width;
        let (x, grad): (Vec<T>, Vec<T>) = (values(count, 1), values(count, 2));
        let (weight, bias): (Vec<T>, Vec<T>) = (values(all, 3), values(all, 4));
        let wide = |values: &[T]| values.iter().map(|v| v.to_f64()).collect::<Vec<_>>();
        at_every_level(|level| {
            let what = format!("{batch} {shape:?} {level:?}");
            let (y, stats) = forward(&x, &weight, &bias, shape, 1e-5);
            let grads = backward(&x, &grad, &weight, &stats, shape, true);
            let (hat, expected_stats) = norm::forward(&wide(&x), width, 1e-5, true, None, None);
            let per_number = |row: &[T], i: usize| row[i / inner % all].to_f64();
            let value =
                |(i, hat): (usize, &f64)| hat * per_number(&weight, i) + per_number(&bias, i);
            let expected: Vec<f64> = hat.iter().enumerate().map(value).collect();
            assert_close(&what, &y, &expected, tolerance);
            assert_close(&what, &stats, &expected_stats, tolerance);

            let weighted = |(i, grad): (usize, &T)| grad.to_f64() * per_number(&weight, i);
            let weighted: Vec<f64> = grad.iter().enumerate().map(weighted).collect();
            let expected = norm::backward(&wide(&x), &weighted, &expected_stats, None, width, true);
            assert_close(&what, &grads.on_x, &expected, 30.0 * tolerance);
            let (mut on_weight, mut on_bias) = (vec![0.0; all], vec![0.0; all]);
            for (i, (hat, grad)) in hat.iter().zip(&grad).enumerate() {
                on_weight[i / inner % all] += hat * grad.to_f64();
                on_bias[i / inner % all] += grad.to_f64();
            }
            assert_close(&what, &grads.on_weight, &on_weight, 4.0 * tolerance);
            assert_close(&what, &grads.on_bias, &on_bias, 4.0 * tolerance);
            assert!(sums::segments(&x, &grad, inner, |_| T::ZERO).len() == batch * all);
        });
    }

    #[test]
    fn every_level_follows_the_formula() {
        for inner in [1, 3, 7, 13, 17, 1000] {
            for (groups, channels) in [(1, 3), (3, 2), (4, 1)] {
                let shape = Groups {
                    groups,
                    channels,
                    inner,
                };
                if channels * inner > 1 {
                    check::<f32>(3, shape, 2e-6);
                    check::<f64>(3, shape, 1e-13);
                }
            }
        }
    }
}

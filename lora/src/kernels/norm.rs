//! Normalisation of rows: (x − mean) / √(var + eps)·weight + bias, or without the mean.
//!
//! The functions run on one thread; callers split the rows.

use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};

/// At least the numbers in any vector.
const LANES: usize = 16;

/// y = the norm of x, row by row, and each row's mean and 1 / standard deviation into `stats` (two
/// numbers a row; the mean is 0 where it is not removed).
#[allow(clippy::too_many_arguments)]
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
    if width > 0 {
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
}

/// The gradient of x from that of y and the statistics of the forward pass.
pub(crate) fn backward_rows<T: Element>(
    x: &[T],
    grad: &[T],
    stats: &[T],
    weight: Option<&[T]>,
    out: &mut [T],
    width: usize,
    remove_mean: bool,
) {
    if width > 0 {
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

/// The sum of `f` of each number of a row: of whole vectors, and of the rest beside them.
#[inline(always)]
fn total<T: Element, S: Simd>(
    simd: S,
    width: usize,
    f: impl Fn(std::ops::Range<usize>) -> Vector<T, S>,
) -> T {
    let lanes = T::lanes::<S>();
    let mut sums = [Vector::<T, S>::zero(simd); 4];
    let mut start = 0;
    while start + 4 * lanes <= width {
        for (index, sum) in sums.iter_mut().enumerate() {
            let start = start + index * lanes;
            *sum = *sum + f(start..start + lanes);
        }
        start += 4 * lanes;
    }
    while start < width {
        sums[0] = sums[0] + f(start..(start + lanes).min(width));
        start += lanes;
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
}

impl<T: Element> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.width;
        let lanes = T::lanes::<S>();
        let load = |values: &[T]| Vector::<T, S>::load(simd, values);
        let share = T::ONE / T::of(width as f64);
        let ones = [T::ONE; LANES];
        let rows = self.x.chunks(width).zip(self.y.chunks_mut(width));
        for ((x, y), stats) in rows.zip(self.stats.chunks_mut(2)) {
            let mean = match self.remove_mean {
                true => total(simd, width, |place| load(&x[place])) * share,
                false => T::ZERO,
            };
            let means = Vector::splat(simd, mean);
            let squares = total(simd, width, |place| {
                // Lanes beyond the row's end stay zeros.
                let means = match place.len() {
                    full if full == lanes => means,
                    part => means * load(&ones[..part]),
                };
                let centred = load(&x[place]) - means;
                centred * centred
            });
            let inverse = T::ONE / (squares * share + T::of(self.eps)).root();
            stats.copy_from_slice(&[mean, inverse]);
            let inverses = Vector::splat(simd, inverse);
            for start in (0..width).step_by(lanes) {
                let place = start..(start + lanes).min(width);
                let mut value = (load(&x[place.clone()]) - means) * inverses;
                if let Some(weight) = self.weight {
                    value = value * load(&weight[place.clone()]);
                }
                if let Some(bias) = self.bias {
                    value = value + load(&bias[place.clone()]);
                }
                value.store(&mut y[place]);
            }
        }
    }
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
        let lanes = T::lanes::<S>();
        let load = |values: &[T]| Vector::<T, S>::load(simd, values);
        let share = T::ONE / T::of(width as f64);
        let rows = self.x.chunks(width).zip(self.grad.chunks(width));
        let rows = rows.zip(self.out.chunks_mut(width));
        for (((x, grad), out), stats) in rows.zip(self.stats.chunks(2)) {
            let (mean, inverse) = (stats[0], stats[1]);
            let (means, inverses) = (Vector::splat(simd, mean), Vector::splat(simd, inverse));
            // The gradient of x̂; lanes beyond the end are zeros.
            let scaled = |place: std::ops::Range<usize>| {
                let grad = load(&grad[place.clone()]);
                match self.weight {
                    Some(weight) => grad * load(&weight[place]),
                    None => grad,
                }
            };
            // dx = (g − mean(g) − x̂·mean(g·x̂)) / std
            let along = total(simd, width, |place| {
                scaled(place.clone()) * ((load(&x[place]) - means) * inverses)
            }) * share;
            let level = match self.remove_mean {
                true => total(simd, width, scaled) * share,
                false => T::ZERO,
            };
            let (along, level) = (Vector::splat(simd, along), Vector::splat(simd, level));
            for start in (0..width).step_by(lanes) {
                let place = start..(start + lanes).min(width);
                let standard = (load(&x[place.clone()]) - means) * inverses;
                let value = (scaled(place.clone()) - level - standard * along) * inverses;
                value.store(&mut out[place]);
            }
        }
    }
}

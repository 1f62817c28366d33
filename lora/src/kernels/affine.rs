//! x·weight + bias along one dimension, and sums of tensors.

use super::simd::{Element, Vector, run};
use super::{CHUNK, buffer::buffer, sums};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// How a contiguous tensor lies around one of its dimensions, of `n` indices: each index has
/// `inner` numbers, and all of them repeat for each index of the dimensions before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Along {
    pub(crate) n: usize,
    pub(crate) inner: usize,
}

/// What is added to x·weight.
#[derive(Clone, Copy)]
pub(crate) enum Plus<'a, T> {
    Nothing,
    /// A number for each index of the weight.
    Bias(&'a [T]),
    /// A number for each of x.
    Each(&'a [T]),
}

/// x·weight + `plus`, on all threads.
pub(crate) fn scale<T: Element>(x: &[T], weight: &[T], plus: Plus<'_, T>, along: Along) -> Vec<T> {
    let Along { n, inner } = along;
    let mut y = buffer(x.len());
    if x.is_empty() {
        return y;
    }
    assert!(weight.len() == n && x.len().is_multiple_of(n * inner));
    // Segments of `inner` numbers share one weight. With `inner` 1, a row of n numbers has each
    // weight once.
    let length = if inner == 1 { n } else { inner };
    let count = (CHUNK / length).max(1);
    let chunks = x.par_chunks(count * length);
    let chunks = chunks.zip(y.par_chunks_mut(count * length)).enumerate();
    chunks.for_each(|(chunk, (x, y))| {
        let plus = match plus {
            Plus::Each(values) => Plus::Each(&values[chunk * count * length..][..x.len()]),
            plus => plus,
        };
        if inner == 1 {
            run(Rows { x, weight, plus, y });
        } else {
            let first = chunk * count;
            run(Segments {
                x,
                weight,
                plus,
                y,
                inner,
                first,
            });
        }
    });
    y
}

/// Rows with as many numbers as the weight.
struct Rows<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    plus: Plus<'a, T>,
    y: &'a mut [T],
}

impl<T: Element> WithSimd for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        let rows = self.x.chunks_exact(width);
        let rows = rows.zip(self.y.chunks_exact_mut(width));
        match self.plus {
            Plus::Nothing => {
                for (x, y) in rows {
                    product(simd, x, self.weight, y);
                }
            }
            Plus::Bias(bias) => {
                for (x, y) in rows {
                    product_and(simd, x, self.weight, bias, y);
                }
            }
            Plus::Each(values) => {
                for ((x, y), values) in rows.zip(values.chunks_exact(width)) {
                    product_and(simd, x, self.weight, values, y);
                }
            }
        }
    }
}

/// y = x·weight
#[inline(always)]
fn product<T: Element, S: Simd>(simd: S, x: &[T], weight: &[T], y: &mut [T]) {
    let (x, x_rest) = T::raw_split::<S>(x);
    let (weight, weight_rest) = T::raw_split::<S>(weight);
    let (y, y_rest) = T::raw_split_mut::<S>(y);
    for ((x, weight), y) in x.iter().zip(weight).zip(y) {
        *y = (Vector::<T, S>::new(simd, *x) * Vector::new(simd, *weight)).raw();
    }
    if !x_rest.is_empty() {
        (Vector::<T, S>::load(simd, x_rest) * Vector::load(simd, weight_rest)).store(y_rest);
    }
}

/// y = x·weight + plus
#[inline(always)]
fn product_and<T: Element, S: Simd>(simd: S, x: &[T], weight: &[T], plus: &[T], y: &mut [T]) {
    let (x, x_rest) = T::raw_split::<S>(x);
    let (weight, weight_rest) = T::raw_split::<S>(weight);
    let (plus, plus_rest) = T::raw_split::<S>(plus);
    let (y, y_rest) = T::raw_split_mut::<S>(y);
    for (((x, weight), plus), y) in x.iter().zip(weight).zip(plus).zip(y) {
        let (x, weight) = (Vector::<T, S>::new(simd, *x), Vector::new(simd, *weight));
        *y = x.mul_add(weight, Vector::new(simd, *plus)).raw();
    }
    if !x_rest.is_empty() {
        let (x, weight) = (
            Vector::<T, S>::load(simd, x_rest),
            Vector::load(simd, weight_rest),
        );
        x.mul_add(weight, Vector::load(simd, plus_rest))
            .store(y_rest);
    }
}

/// Segments with one weight each; after the last weight the first comes again.
struct Segments<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    plus: Plus<'a, T>,
    y: &'a mut [T],
    inner: usize,
    /// The index of the first segment.
    first: usize,
}

impl<T: Element> WithSimd for Segments<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weight, inner, .. } = self;
        let segments = self.x.chunks_exact(inner);
        let segments = segments.zip(self.y.chunks_exact_mut(inner)).enumerate();
        for (index, (x, y)) in segments {
            let channel = (self.first + index) % weight.len();
            let scale = weight[channel];
            match self.plus {
                Plus::Nothing => shifted(simd, x, T::ZERO, scale, T::ZERO, y),
                Plus::Bias(bias) => shifted(simd, x, T::ZERO, scale, bias[channel], y),
                Plus::Each(values) => {
                    let values = &values[index * inner..][..inner];
                    scaled_and(simd, x, scale, values, y);
                }
            }
        }
    }
}

/// y = (x − mean)·scale + shift
#[inline(always)]
pub(super) fn shifted<T: Element, S: Simd>(
    simd: S,
    x: &[T],
    mean: T,
    scale: T,
    shift: T,
    y: &mut [T],
) {
    let (mean, scale) = (Vector::splat(simd, mean), Vector::splat(simd, scale));
    let shift = Vector::splat(simd, shift);
    let (x, x_rest) = T::raw_split::<S>(x);
    let (y, y_rest) = T::raw_split_mut::<S>(y);
    for (x, y) in x.iter().zip(y) {
        *y = (Vector::<T, S>::new(simd, *x) - mean)
            .mul_add(scale, shift)
            .raw();
    }
    if !x_rest.is_empty() {
        (Vector::load(simd, x_rest) - mean)
            .mul_add(scale, shift)
            .store(y_rest);
    }
}

/// y = x·scale + plus
#[inline(always)]
fn scaled_and<T: Element, S: Simd>(simd: S, x: &[T], scale: T, plus: &[T], y: &mut [T]) {
    let scale = Vector::splat(simd, scale);
    let (x, x_rest) = T::raw_split::<S>(x);
    let (plus, plus_rest) = T::raw_split::<S>(plus);
    let (y, y_rest) = T::raw_split_mut::<S>(y);
    for ((x, plus), y) in x.iter().zip(plus).zip(y) {
        let plus = Vector::new(simd, *plus);
        *y = Vector::<T, S>::new(simd, *x).mul_add(scale, plus).raw();
    }
    if !x_rest.is_empty() {
        let plus = Vector::load(simd, plus_rest);
        Vector::<T, S>::load(simd, x_rest)
            .mul_add(scale, plus)
            .store(y_rest);
    }
}

/// The gradients of weight and bias, Σ grad·x and Σ grad for each index, on all threads.
pub(crate) fn weight_grads<T: Element>(x: &[T], grad: &[T], along: Along) -> (Vec<T>, Vec<T>) {
    let Along { n, inner } = along;
    if inner == 1 {
        return sums::columns(x, grad, None, n);
    }
    let (mut on_weight, mut on_bias) = (vec![0.0; n], vec![0.0; n]);
    let segments = sums::segments(x, grad, inner, |_| T::ZERO);
    for (segment, (total, product)) in segments.into_iter().enumerate() {
        on_weight[segment % n] += product;
        on_bias[segment % n] += total;
    }
    let rounded = |sums: Vec<f64>| sums.into_iter().map(T::of).collect();
    (rounded(on_weight), rounded(on_bias))
}

/// x + y, on all threads.
pub(crate) fn add<T: Element>(x: &[T], y: &[T]) -> Vec<T> {
    struct Add<'a, T>(&'a [T], &'a [T], &'a mut [T]);

    impl<T: Element> WithSimd for Add<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            for ((x, y), sum) in self.0.iter().zip(self.1).zip(self.2) {
                *sum = *x + *y;
            }
        }
    }

    assert_eq!(x.len(), y.len());
    let mut sum = buffer(x.len());
    let chunks = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK));
    let chunks = chunks.zip(sum.par_chunks_mut(CHUNK));
    chunks.for_each(|((x, y), sum)| run(Add(x, y, sum)));
    sum
}

#[cfg(test)]
mod tests {
    use super::super::simd::testing::{assert_close, at_every_level, values};
    use super::*;

    fn check<T: Element>(outer: usize, n: usize, inner: usize, tolerance: f64) {
        let count = outer * n * inner;
        let along = Along { n, inner };
        let (x, other): (Vec<T>, Vec<T>) = (values(count, 1), values(count, 2));
        let (weight, bias): (Vec<T>, Vec<T>) = (values(n, 3), values(n, 4));
        let at = |row: &[T], i: usize| row[i / inner % n].to_f64();
        let product = |i: usize| x[i].to_f64() * at(&weight, i);
        let all = |f: &dyn Fn(usize) -> f64| (0..count).map(f).collect::<Vec<f64>>();
        // Sums of many numbers of both signs.
        let reach = 1.0 + (count as f64 / n as f64).sqrt();
        let mut expected = [vec![0.0; n], vec![0.0; n]];
        for i in 0..count {
            expected[0][i / inner % n] += x[i].to_f64() * other[i].to_f64();
            expected[1][i / inner % n] += other[i].to_f64();
        }
        at_every_level(|level| {
            let what = format!("{outer}x{n}x{inner} {level:?}");
            let y = scale(&x, &weight, Plus::Nothing, along);
            assert_close(&what, &y, &all(&product), tolerance);
            let y = scale(&x, &weight, Plus::Bias(&bias), along);
            assert_close(&what, &y, &all(&|i| product(i) + at(&bias, i)), tolerance);
            let y = scale(&x, &weight, Plus::Each(&other), along);
            assert_close(
                &what,
                &y,
                &all(&|i| product(i) + other[i].to_f64()),
                tolerance,
            );
            let y = add(&x, &other);
            assert_close(
                &what,
                &y,
                &all(&|i| x[i].to_f64() + other[i].to_f64()),
                tolerance,
            );
            let (on_weight, on_bias) = weight_grads(&x, &other, along);
            assert_close(&what, &on_weight, &expected[0], reach * tolerance);
            assert_close(&what, &on_bias, &expected[1], reach * tolerance);
        });
    }

    #[test]
    fn every_level_follows_the_formula() {
        for size in [1, 3, 7, 13, 17, 1000] {
            for (outer, n, inner) in [(5, size, 1), (3, 4, size), (2, size, 3), (40, size, 20)] {
                check::<f32>(outer, n, inner, 1e-6);
                check::<f64>(outer, n, inner, 1e-14);
            }
        }
        check::<f32>(0, 3, 1, 0.0);
        check::<f32>(2, 3, 0, 0.0);
    }
}

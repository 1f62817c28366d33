//! Products with a side of a few numbers, the rank: too thin for a general matrix product.
//!
//! Matrices are stored row by row. The functions run on one thread; callers split the rows.

use super::few_rows::{Dots, blocks};
use super::matrix::{Matrix, Threads, multiply};
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};

/// The rank from which general matrix products are faster.
const GENERAL: usize = 8;

/// The same for the products that are sums over a row: gemm computes at least 16 of a row's at a time.
const GENERAL_DOTS: usize = 16;

/// t = x·aᵀ: x is (rows, width), a (rank, width), t (rows, rank).
pub(crate) fn dots<T: Element>(x: &[T], a: &[T], t: &mut [T], width: usize) {
    match a.len().checked_div(width).unwrap_or(0) {
        0 => {}
        rank if rank < GENERAL_DOTS => run(Dots { x, a, t, width }),
        rank => {
            let (x, a) = (
                Matrix::new(x, x.len() / width, width),
                Matrix::new(a, rank, width),
            );
            multiply(t, x, a.t(), T::ONE, false, Threads::One);
        }
    }
}

/// y += t·b: t is (rows, rank), b (rank, width), y (rows, width).
pub(crate) fn add_product<T: Element>(y: &mut [T], t: &[T], b: &[T], width: usize) {
    match b.len().checked_div(width).unwrap_or(0) {
        0 => {}
        // With few rows a general product's copy of b would take most of the time.
        rank if rank < GENERAL || t.len() < GENERAL * rank => run(AddProduct { y, t, b, width }),
        rank => {
            let (t, b) = (
                Matrix::new(t, t.len() / rank, rank),
                Matrix::new(b, rank, width),
            );
            multiply(y, t, b, T::ONE, true, Threads::One);
        }
    }
}

/// sum += uᵀ·x: u is (rows, rank), x (rows, width), sum (rank, width).
pub(crate) fn add_outer<T: Element>(sum: &mut [T], u: &[T], x: &[T], width: usize) {
    match sum.len().checked_div(width).unwrap_or(0) {
        0 => {}
        rank if rank < GENERAL => run(AddOuter { sum, u, x, width }),
        rank => {
            let (u, x) = (
                Matrix::new(u, u.len() / rank, rank),
                Matrix::new(x, x.len() / width, width),
            );
            multiply(sum, u.t(), x, T::ONE, true, Threads::One);
        }
    }
}

/// y += s·t·bᵀ for a few rows: t is (rows, rank), b (width, rank), y (rows, width).
pub(crate) fn add_few<T: Element>(y: &mut [T], t: &[T], b: &[T], rank: usize, s: f64) {
    let s = T::of(s);
    match rank {
        0 => {}
        4 => run(AddFew::<T, 4> { y, t, b, s }),
        8 => run(AddFew::<T, 8> { y, t, b, s }),
        16 => run(AddFew::<T, 16> { y, t, b, s }),
        32 => run(AddFew::<T, 32> { y, t, b, s }),
        _ => {
            let width = b.len() / rank;
            for (y, t) in y.chunks_mut(width.max(1)).zip(t.chunks(rank)) {
                for (y, b) in y.iter_mut().zip(b.chunks_exact(rank)) {
                    let sum = b.iter().zip(t).fold(T::ZERO, |sum, (&b, &t)| sum + b * t);
                    *y += sum * s;
                }
            }
        }
    }
}

/// The rank is a constant, so that the compiler makes vectors of neighbouring columns.
struct AddFew<'a, T, const RANK: usize> {
    y: &'a mut [T],
    t: &'a [T],
    b: &'a [T],
    s: T,
}

impl<T: Element, const RANK: usize> WithSimd for AddFew<'_, T, RANK> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { y, t, b, s } = self;
        let b = b.as_chunks::<RANK>().0;
        let rows = y.chunks_mut(b.len().max(1)).zip(t.as_chunks::<RANK>().0);
        for (y, t) in rows {
            for (y, b) in y.iter_mut().zip(b) {
                let mut sum = T::ZERO;
                for k in 0..RANK {
                    sum += b[k] * t[k];
                }
                *y += sum * s;
            }
        }
    }
}

struct AddProduct<'a, T> {
    y: &'a mut [T],
    t: &'a [T],
    b: &'a [T],
    width: usize,
}

impl<T: Element> WithSimd for AddProduct<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, t, b, width } = self;
        let rank = b.len() / width;
        let lanes = T::lanes::<S>();
        blocks!(rank, |k, RANKS| {
            for start in (0..width).step_by(4 * lanes) {
                let end = (start + 4 * lanes).min(width);
                let mut factors = [[Vector::<T, S>::zero(simd); 4]; RANKS];
                for (factors, k) in factors.iter_mut().zip(k..) {
                    let b = &b[k * width + start..k * width + end];
                    for (factor, b) in factors.iter_mut().zip(b.chunks(lanes)) {
                        *factor = Vector::load(simd, b);
                    }
                }
                for (y, t) in y.chunks_mut(width).zip(t.chunks(rank)) {
                    let y = &mut y[start..end];
                    for (column, y) in y.chunks_mut(lanes).enumerate() {
                        let mut sum = Vector::load(simd, y);
                        for (factors, &t) in factors.iter().zip(&t[k..k + RANKS]) {
                            sum = Vector::splat(simd, t).mul_add(factors[column & 3], sum);
                        }
                        sum.store(y);
                    }
                }
            }
        });
    }
}

struct AddOuter<'a, T> {
    sum: &'a mut [T],
    u: &'a [T],
    x: &'a [T],
    width: usize,
}

impl<T: Element> WithSimd for AddOuter<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sum, u, x, width } = self;
        let rank = sum.len() / width;
        let lanes = T::lanes::<S>();
        blocks!(rank, |k, RANKS| {
            let mut start = 0;
            while start + 4 * lanes <= width {
                outer_block::<T, S, RANKS, 4>(simd, sum, u, x, width, rank, k, start);
                start += 4 * lanes;
            }
            while start < width {
                outer_block::<T, S, RANKS, 1>(simd, sum, u, x, width, rank, k, start);
                start += lanes;
            }
        });
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn outer_block<T: Element, S: Simd, const RANKS: usize, const COLUMNS: usize>(
    simd: S,
    sum: &mut [T],
    u: &[T],
    x: &[T],
    width: usize,
    rank: usize,
    k: usize,
    start: usize,
) {
    let lanes = T::lanes::<S>();
    let end = (start + COLUMNS * lanes).min(width);
    let mut sums = [[Vector::<T, S>::zero(simd); COLUMNS]; RANKS];
    for (u, x) in u.chunks(rank).zip(x.chunks(width)) {
        let (u, x) = (&u[k..k + RANKS], &x[start..end]);
        let mut columns = [Vector::zero(simd); COLUMNS];
        for column in 0..COLUMNS {
            columns[column] = Vector::load(simd, &x[column * lanes..]);
        }
        for k in 0..RANKS {
            let u = Vector::splat(simd, u[k]);
            for column in 0..COLUMNS {
                sums[k][column] = u.mul_add(columns[column], sums[k][column]);
            }
        }
    }
    for (sums, k) in sums.into_iter().zip(k..) {
        let sum = &mut sum[k * width + start..k * width + end];
        for (sum, more) in sum.chunks_mut(lanes).zip(sums) {
            (Vector::load(simd, sum) + more).store(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::testing::at_every_level;

    fn numbers(count: usize, seed: usize) -> Vec<f64> {
        (0..count)
            .map(|i| ((i * 37 + seed * 101) % 97) as f64 / 97.0 - 0.5)
            .collect()
    }

    fn check<T: Element>(rows: usize, width: usize, rank: usize, error: f64) {
        let (x, a, t) = (
            numbers(rows * width, 1),
            numbers(rank * width, 2),
            numbers(rows * rank, 3),
        );
        let cast = |x: &[f64]| -> Vec<T> { x.iter().map(|&x| T::of(x)).collect() };
        let close = |what: &str, ours: &[T], exact: &[f64]| {
            for (ours, exact) in ours.iter().zip(exact) {
                let ours = ours.to_f64();
                assert!(
                    (ours - exact).abs() <= error * (1.0 + exact.abs()),
                    "{what} of {rows}x{width}, rank {rank}: {ours} for {exact}"
                );
            }
        };
        let mut ours = cast(&vec![0.0; rows * rank]);
        dots(&cast(&x), &cast(&a), &mut ours, width);
        let mut exact = vec![0.0; rows * rank];
        let mut product = x.clone();
        let mut outer = a.clone();
        for row in 0..rows {
            for k in 0..rank {
                for i in 0..width {
                    exact[row * rank + k] += x[row * width + i] * a[k * width + i];
                    product[row * width + i] += t[row * rank + k] * a[k * width + i];
                    outer[k * width + i] += t[row * rank + k] * x[row * width + i];
                }
            }
        }
        close("dots", &ours, &exact);
        let mut ours = cast(&x);
        add_product(&mut ours, &cast(&t), &cast(&a), width);
        close("add_product", &ours, &product);
        let mut columns = vec![0.0; a.len()];
        for k in 0..rank {
            for i in 0..width {
                columns[i * rank + k] = a[k * width + i] * 2.0;
            }
        }
        let mut ours = cast(&x);
        add_few(&mut ours, &cast(&t), &cast(&columns), rank, 0.5);
        close("add_few", &ours, &product);
        let mut ours = cast(&a);
        add_outer(&mut ours, &cast(&t), &cast(&x), width);
        close("add_outer", &ours, &outer);
    }

    #[test]
    fn products_are_right_at_every_level() {
        at_every_level(|_| {
            for width in [1, 3, 7, 13, 16, 17, 64, 100, 1000] {
                for (rows, rank) in [
                    (1, 1),
                    (3, 2),
                    (5, 3),
                    (1, 4),
                    (8, 7),
                    (2, 8),
                    (6, 16),
                    (4, 32),
                ] {
                    check::<f32>(rows, width, rank, 1e-5);
                    check::<f64>(rows, width, rank, 1e-13);
                }
            }
        });
    }
}

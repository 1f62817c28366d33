//! Products of a few rows with a weight, y = x·Wᵀ: each row of W is read once, where it lies. A general
//! matrix product first copies all of W into another order, which takes longer than such a product.

use super::matrix::Threads;
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// From so many inputs on, the numbers of a weight's column count as far apart in memory.
pub(super) const FAR_APART: usize = 1024;

/// From so many rows on, a copy of a weight in another order pays, where its columns are far apart.
pub(super) const MANY_ROWS: usize = 64;

/// Whether so many rows are few, for a weight of so many inputs and outputs: where gemm is slower.
pub(super) fn are_few(rows: usize, inputs: usize, outputs: usize) -> bool {
    match inputs {
        _ if rows == 0 || inputs == 0 => false,
        // gemm reads columns that are far apart much slower than others.
        FAR_APART.. => rows < MANY_ROWS,
        _ if rows == 1 => inputs * outputs >= LARGE,
        _ => rows <= 16,
    }
}

/// Numbers of a weight from which on a single row's product is faster here.
const LARGE: usize = 1 << 20;

/// Numbers of W that one task reads.
const PART: usize = 1 << 16;

/// y = x·Wᵀ, or y += x·Wᵀ with `add`: x is (rows, inputs), w (outputs, inputs), y (rows, outputs).
pub(crate) fn product<T: Element>(
    y: &mut [T],
    x: &[T],
    w: &[T],
    inputs: usize,
    add: bool,
    threads: Threads,
) {
    let dots_of = |outputs: Range<usize>, t: &mut [T]| {
        let w = &w[outputs.start * inputs..outputs.end * inputs];
        dots(w, x, t, inputs);
    };
    product_of(y, (x.len() / inputs, inputs), dots_of, add, threads);
}

/// As [`product`], for a weight of which `dots_of` gives the products of some rows with all rows of x,
/// (outputs, rows).
pub(super) fn product_of<T: Element>(
    y: &mut [T],
    (rows, inputs): (usize, usize),
    dots_of: impl Fn(Range<usize>, &mut [T]) + Sync,
    add: bool,
    threads: Threads,
) {
    let outputs = y.len() / rows;
    let part = (PART / inputs).clamp(1, outputs.max(1));
    let transposed = |first: usize| {
        let outputs = first..(first + part).min(outputs);
        let mut t = vec![T::ZERO; outputs.len() * rows];
        dots_of(outputs, &mut t);
        t
    };
    let firsts = (0..outputs).step_by(part);
    let parts: Vec<Vec<T>> = match threads {
        Threads::One => firsts.clone().map(transposed).collect(),
        Threads::All => {
            let firsts: Vec<usize> = firsts.clone().collect();
            firsts.into_par_iter().map(transposed).collect()
        }
    };
    for (first, t) in firsts.zip(parts) {
        for (output, sums) in (first..).zip(t.chunks_exact(rows)) {
            for (row, &sum) in sums.iter().enumerate() {
                let y = &mut y[row * outputs + output];
                *y = if add { *y + sum } else { sum };
            }
        }
    }
}

/// t = x·aᵀ: x is (rows, width), a (rank, width), t (rows, rank).
pub(super) fn dots<T: Element>(x: &[T], a: &[T], t: &mut [T], width: usize) {
    run(Dots { x, a, t, width });
}

/// Runs `$body` for blocks of 4, 2 and 1 of `$count` items. The size is a constant in the body, so
/// that a block's sums stay in registers while its rows are read once.
macro_rules! blocks {
    ($count:expr, |$start:ident, $size:ident| $body:expr) => {{
        let mut $start = 0;
        while $start + 4 <= $count {
            const $size: usize = 4;
            $body;
            $start += 4;
        }
        if $start + 2 <= $count {
            const $size: usize = 2;
            $body;
            $start += 2;
        }
        if $start < $count {
            const $size: usize = 1;
            $body;
        }
    }};
}
pub(super) use blocks;

/// t = x·aᵀ: x is (rows, width), a (rank, width), t (rows, rank).
pub(super) struct Dots<'a, T> {
    pub(super) x: &'a [T],
    pub(super) a: &'a [T],
    pub(super) t: &'a mut [T],
    pub(super) width: usize,
}

impl<T: Element> WithSimd for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, a, t, width } = self;
        let rank = a.len() / width;
        let rows = x.len() / width;
        blocks!(rows, |row, ROWS| {
            let x = &x[row * width..][..ROWS * width];
            let t = &mut t[row * rank..][..ROWS * rank];
            blocks!(rank, |k, RANKS| {
                let a = &a[k * width..][..RANKS * width];
                let sums = dots_block::<T, S, ROWS, RANKS>(simd, x, a, width);
                for (t, sums) in t.chunks_mut(rank).zip(sums) {
                    t[k..k + RANKS].copy_from_slice(&sums);
                }
            });
        });
    }
}

#[inline(always)]
fn dots_block<T: Element, S: Simd, const ROWS: usize, const RANKS: usize>(
    simd: S,
    x: &[T],
    a: &[T],
    width: usize,
) -> [[T; RANKS]; ROWS] {
    let lanes = T::lanes::<S>();
    let mut sums = [[Vector::<T, S>::zero(simd); RANKS]; ROWS];
    let whole = width / lanes * lanes;
    for start in (0..whole).step_by(lanes) {
        add_dots(simd, x, a, width, start, lanes, &mut sums);
    }
    if whole < width {
        add_dots(simd, x, a, width, whole, width - whole, &mut sums);
    }
    // Loops, as a closure would not be compiled for the vector instructions.
    let mut totals = [[T::ZERO; RANKS]; ROWS];
    for row in 0..ROWS {
        for k in 0..RANKS {
            totals[row][k] = sums[row][k].sum();
        }
    }
    totals
}

/// Adds the products of so many columns from `start` on.
#[inline(always)]
fn add_dots<T: Element, S: Simd, const ROWS: usize, const RANKS: usize>(
    simd: S,
    x: &[T],
    a: &[T],
    width: usize,
    start: usize,
    count: usize,
    sums: &mut [[Vector<T, S>; RANKS]; ROWS],
) {
    let mut factors = [Vector::zero(simd); RANKS];
    for k in 0..RANKS {
        factors[k] = Vector::load(simd, &a[k * width + start..][..count]);
    }
    for row in 0..ROWS {
        let x = Vector::load(simd, &x[row * width + start..][..count]);
        for k in 0..RANKS {
            sums[row][k] = x.mul_add(factors[k], sums[row][k]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matrix::{Matrix, multiply};
    use crate::kernels::simd::testing::at_every_level;

    fn numbers(count: usize, seed: usize) -> Vec<f64> {
        let number = |i: usize| ((i * 37 + seed * 101) % 97) as f64 / 97.0 - 0.5;
        (0..count).map(number).collect()
    }

    /// The product of few rows, and that of [`multiply`], against sums in f64.
    fn check<T: Element>((rows, inputs, outputs): (usize, usize, usize), error: f64) {
        let (x, w) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
        let start = numbers(rows * outputs, 3);
        let cast = |values: &[f64]| -> Vec<T> { values.iter().map(|&x| T::of(x)).collect() };
        let (of_x, of_w) = (cast(&x), cast(&w));
        for add in [false, true] {
            for threads in [Threads::One, Threads::All] {
                let mut ours = cast(&start);
                product(&mut ours, &of_x, &of_w, inputs, add, threads);
                let mut general = cast(&start);
                let (x_matrix, w_matrix) = (
                    Matrix::new(&of_x, rows, inputs),
                    Matrix::new(&of_w, outputs, inputs),
                );
                multiply(&mut general, x_matrix, w_matrix.t(), T::ONE, add, threads);
                for (index, (ours, general)) in ours.iter().zip(general).enumerate() {
                    let (row, output) = (index / outputs, index % outputs);
                    let terms = (0..inputs).map(|i| x[row * inputs + i] * w[output * inputs + i]);
                    let before = if add { start[index] } else { 0.0 };
                    let exact = before + terms.sum::<f64>();
                    for value in [*ours, general] {
                        let value = value.to_f64();
                        assert!(
                            (value - exact).abs() <= error * (1.0 + inputs as f64).sqrt(),
                            "{rows}x{inputs}x{outputs}, add {add}: {value} for {exact}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_computes_the_product() {
        at_every_level(|_| {
            for rows in [1, 2, 3, 7, 8, 9] {
                for (inputs, outputs) in [(1, 1), (3, 5), (17, 70), (100, 9), (1030, 130)] {
                    check::<f32>((rows, inputs, outputs), 1e-5);
                    check::<f64>((rows, inputs, outputs), 1e-13);
                }
            }
        });
    }

    /// What is measured: rows that gemm is slow for.
    #[test]
    fn few_rows_are_those_of_a_step_of_generation() {
        assert!(are_few(8, 576, 576) && are_few(16, 576, 49152) && are_few(1, 576, 49152));
        assert!(are_few(1, 1536, 576) && are_few(63, 4096, 4096));
        assert!(!are_few(1, 576, 576) && !are_few(17, 576, 49152));
        assert!(!are_few(64, 4096, 4096) && !are_few(2, 0, 3) && !are_few(0, 576, 3));
    }
}

//! Products of a few rows with a weight, y = x·Wᵀ: each row of W is read once, where it lies. A general
//! matrix product first copies all of W into another order, which takes longer than such a product.

use super::matrix::Threads;
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// From so many inputs on, the numbers of a weight's column count as far apart in memory.
pub(super) const FAR_APART: usize = 1024;

/// From so many rows on, a copy of a weight in another order pays, where its columns are far apart.
pub(super) const MANY_ROWS: usize = 64;

/// Whether so many rows are few, for a weight of so many inputs: gemm reads columns that are far apart
/// much slower than others.
pub(super) fn are_few(rows: usize, inputs: usize) -> bool {
    match inputs >= FAR_APART {
        true => rows < MANY_ROWS,
        false => inputs > 0 && (2..=8).contains(&rows),
    }
}

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
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    let part = (PART / inputs).clamp(1, outputs.max(1));
    let transposed = |w: &[T]| {
        let mut t = vec![T::ZERO; w.len() / inputs * rows];
        run(Dots {
            x: w,
            a: x,
            t: &mut t,
            width: inputs,
        });
        t
    };
    let parts: Vec<Vec<T>> = match threads {
        Threads::One => w.chunks(part * inputs).map(transposed).collect(),
        Threads::All => w.par_chunks(part * inputs).map(transposed).collect(),
    };
    for (first, t) in (0..outputs).step_by(part).zip(parts) {
        for (output, sums) in (first..).zip(t.chunks_exact(rows)) {
            for (row, &sum) in sums.iter().enumerate() {
                let y = &mut y[row * outputs + output];
                *y = if add { *y + sum } else { sum };
            }
        }
    }
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
    sums.map(|row| row.map(Vector::sum))
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

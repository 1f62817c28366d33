//! Rotary position embeddings.

use super::matrix::Threads;
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Numbers that one task handles: enough to be worth a thread, few enough to stay in its cache.
const CHUNK: usize = 1 << 14;

/// Which numbers of a row are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// Numbers half a row apart.
    Halves,
    /// Neighbours.
    Neighbours,
}

/// Where rows are found, by three indices of the result's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) dims: [usize; 3],
    /// Steps between rows of the input, in numbers.
    pub(crate) steps: [usize; 3],
    /// Steps between rows of the tables, in rows.
    pub(crate) table_steps: [usize; 3],
}

impl Rows {
    /// The start of a row of the input, and the row of the tables.
    #[inline(always)]
    fn find(&self, row: usize) -> (usize, usize) {
        let [_, b, c] = self.dims;
        let index = [row / (b * c), row / c % b, row % c];
        let at =
            |steps: [usize; 3]| index[0] * steps[0] + index[1] * steps[1] + index[2] * steps[2];
        (at(self.steps), at(self.table_steps))
    }
}

/// Rotates rows of x by the angles of the tables, or back with `back`, on all threads.
pub(crate) fn rotate<T: Element>(
    y: &mut [T],
    x: &[T],
    (cos, sin): (&[T], &[T]),
    rows: Rows,
    pairs: Pairs,
    back: bool,
) {
    let count: usize = rows.dims.iter().product();
    if y.is_empty() {
        return;
    }
    let dim = y.len() / count;
    let chunk = (CHUNK / dim).max(1);
    let chunks = y.par_chunks_mut(chunk * dim).enumerate();
    chunks.for_each(|(index, y)| {
        run(Rotate {
            y,
            x,
            cos,
            sin,
            rows,
            first: index * chunk,
            dim,
            pairs,
            back,
        });
    });
}

/// The tables for rows of (batch, time, heads, dim).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<'a, T> {
    /// (time, half), or (batch, time, half) with `by_batch`.
    pub(crate) cos: &'a [T],
    pub(crate) sin: &'a [T],
    /// Half of the numbers of a head that turn, its first ones.
    pub(crate) half: usize,
    pub(crate) time: usize,
    pub(crate) by_batch: bool,
}

impl<T: Element> Tables<'_, T> {
    /// Rotates halves of each head in place, or back with `back`. `width` is the width of the rows of
    /// all heads, and `first` the number of the first row in the batch.
    pub(crate) fn turn(
        &self,
        rows: &mut [T],
        (width, dim): (usize, usize),
        first: usize,
        back: bool,
        threads: Threads,
    ) {
        let part = |first, rows| {
            run(Turn {
                tables: *self,
                rows,
                width,
                dim,
                first,
                back,
            });
        };
        if threads == Threads::One {
            return part(first, rows);
        }
        let chunk = CHUNK / width + 1;
        let chunks = rows.par_chunks_mut(chunk * width).enumerate();
        chunks.for_each(|(index, rows)| part(first + index * chunk, rows));
    }
}

struct Turn<'a, T> {
    tables: Tables<'a, T>,
    rows: &'a mut [T],
    width: usize,
    dim: usize,
    first: usize,
    back: bool,
}

impl<T: Element> WithSimd for Turn<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tables {
            cos,
            sin,
            half,
            time,
            by_batch,
        } = self.tables;
        let sign = if self.back { T::ZERO - T::ONE } else { T::ONE };
        for (index, row) in self.rows.chunks_exact_mut(self.width).enumerate() {
            let row_of_batch = self.first + index;
            let place = match by_batch {
                true => row_of_batch,
                false => row_of_batch % time,
            };
            let cos = &cos[place * half..][..half];
            let sin = &sin[place * half..][..half];
            for head in row.chunks_exact_mut(self.dim) {
                halves(simd, &mut head[..2 * half], cos, sin, sign);
            }
        }
    }
}

struct Rotate<'a, T> {
    y: &'a mut [T],
    x: &'a [T],
    cos: &'a [T],
    sin: &'a [T],
    rows: Rows,
    /// The index of the first row.
    first: usize,
    dim: usize,
    pairs: Pairs,
    back: bool,
}

impl<T: Element> WithSimd for Rotate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (dim, half) = (self.dim, self.dim / 2);
        let sign = if self.back { T::ZERO - T::ONE } else { T::ONE };
        for (index, y) in self.y.chunks_exact_mut(dim).enumerate() {
            let (start, row) = self.rows.find(self.first + index);
            let x = &self.x[start..][..dim];
            let cos = &self.cos[row * half..][..half];
            let sin = &self.sin[row * half..][..half];
            match self.pairs {
                Pairs::Halves => {
                    y.copy_from_slice(x);
                    halves(simd, y, cos, sin, sign);
                }
                Pairs::Neighbours => neighbours(y, x, cos, sin, sign),
            }
        }
    }
}

/// Rotates a row in place.
#[inline(always)]
fn halves<T: Element, S: Simd>(simd: S, row: &mut [T], cos: &[T], sin: &[T], sign: T) {
    let lanes = T::lanes::<S>();
    let sign = Vector::<T, S>::splat(simd, sign);
    let (left, right) = row.split_at_mut(cos.len());
    let row = left.chunks_mut(lanes).zip(right.chunks_mut(lanes));
    let angles = cos.chunks(lanes).zip(sin.chunks(lanes));
    for ((left, right), (cos, sin)) in row.zip(angles) {
        let (x0, x1) = (Vector::load(simd, left), Vector::load(simd, right));
        let (cos, sin) = (Vector::load(simd, cos), Vector::load(simd, sin) * sign);
        (x0 * cos - x1 * sin).store(left);
        (x0 * sin + x1 * cos).store(right);
    }
}

/// Compiled for the instructions of the kernel that this is inlined into.
#[inline(always)]
fn neighbours<T: Element>(y: &mut [T], x: &[T], cos: &[T], sin: &[T], sign: T) {
    let pairs = x.chunks_exact(2).zip(y.chunks_exact_mut(2));
    for ((x, y), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
        let sin = sin * sign;
        y[0] = x[0] * cos - x[1] * sin;
        y[1] = x[0] * sin + x[1] * cos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::testing::at_every_level;

    #[test]
    fn every_level_rotates_and_rotates_back() {
        for dim in [2, 6, 16, 34, 64] {
            let (half, rows) = (dim / 2, 3);
            let x: Vec<f32> = (0..2 * rows * dim)
                .map(|i| (i as f32 * 1.7).sin())
                .collect();
            let angles = (0..rows * half).map(|i| i as f32 * 0.3);
            let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
            let at = Rows {
                dims: [1, 2, rows],
                steps: [0, rows * dim, dim],
                table_steps: [0, 0, 1],
            };
            for (pairs, apart) in [(Pairs::Halves, half), (Pairs::Neighbours, 1)] {
                at_every_level(|level| {
                    let (mut y, mut z) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                    rotate(&mut y, &x, (&cos, &sin), at, pairs, false);
                    rotate(&mut z, &y, (&cos, &sin), at, pairs, true);
                    for row in 0..2 * rows {
                        for i in 0..half {
                            let first = row * dim + i * if apart == 1 { 2 } else { 1 };
                            let (a, b) = (x[first], x[first + apart]);
                            let angle = row % rows * half + i;
                            let (cos, sin) = (cos[angle], sin[angle]);
                            let what = format!("{level:?} {pairs:?} {dim} {row} {i}");
                            assert!((y[first] - (a * cos - b * sin)).abs() < 1e-6, "{what}");
                            assert!(
                                (y[first + apart] - (a * sin + b * cos)).abs() < 1e-6,
                                "{what}"
                            );
                        }
                    }
                    let errors = x.iter().zip(&z).map(|(x, z)| (x - z).abs());
                    assert!(
                        errors.fold(0.0, f32::max) < 1e-6,
                        "{level:?} {pairs:?} {dim}"
                    );
                });
            }
        }
    }

    #[test]
    fn rows_of_all_heads_turn_in_place() {
        let (batch, time, heads) = (2, 3, 2);
        for (dim, half) in [(4, 2), (6, 2), (34, 17)] {
            let width = heads * dim;
            let x: Vec<f64> = (0..batch * time * width)
                .map(|i| (i as f64 * 1.7).sin())
                .collect();
            let angles = (0..batch * time * half).map(|i| i as f64 * 0.3);
            let (sin, cos): (Vec<f64>, Vec<f64>) = angles.map(f64::sin_cos).unzip();
            for by_batch in [false, true] {
                let tables = Tables {
                    cos: &cos,
                    sin: &sin,
                    half,
                    time,
                    by_batch,
                };
                let mut expected = x.clone();
                for (row, values) in expected.chunks_mut(width).enumerate() {
                    let angle = if by_batch { row } else { row % time } * half;
                    for head in values.chunks_mut(dim) {
                        for i in 0..half {
                            let (a, b) = (head[i], head[half + i]);
                            let (cos, sin) = (cos[angle + i], sin[angle + i]);
                            (head[i], head[half + i]) = (a * cos - b * sin, a * sin + b * cos);
                        }
                    }
                }
                at_every_level(|level| {
                    for threads in [Threads::One, Threads::All] {
                        // The second text alone, then the first.
                        let mut y = x.clone();
                        let (first, second) = y.split_at_mut(time * width);
                        tables.turn(second, (width, dim), time, false, threads);
                        tables.turn(first, (width, dim), 0, false, threads);
                        let far = |a: &[f64], b: &[f64]| {
                            let errors = a.iter().zip(b).map(|(a, b)| (a - b).abs());
                            errors.fold(0.0, f64::max)
                        };
                        let what = format!("{level:?} {dim} {half} {by_batch} {threads:?}");
                        assert!(far(&y, &expected) < 1e-12, "{what}");
                        tables.turn(&mut y, (width, dim), 0, true, threads);
                        assert!(far(&y, &x) < 1e-12, "{what}, back");
                    }
                });
            }
        }
    }
}

//! Copies of permuted tensors into contiguous memory.

use super::CHUNK;
use super::simd::run;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows and columns that are transposed at once.
const TILE: usize = 8;

/// Rows that are written side by side: the reads for them use whole lines of the cache.
const BAND: usize = 8 * TILE;

/// One dimension of a strided tensor: how many indices, and how far they are apart in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dim {
    size: usize,
    stride: usize,
}

/// How to read a strided tensor in the order of its indices.
#[derive(Clone, Debug)]
pub(crate) struct Gather {
    /// The dimensions with more than one index. Those that lie next to each other in memory are
    /// one.
    dims: Vec<Dim>,
    /// The dimension along which memory is contiguous.
    fast: usize,
}

impl Gather {
    /// For a tensor of these dimensions and strides; `None` if no dimension is contiguous in memory
    /// or the tensor has no elements.
    pub(crate) fn new(dims: &[usize], strides: &[usize]) -> Option<Self> {
        let mut merged: Vec<Dim> = Vec::new();
        for (&size, &stride) in dims.iter().zip(strides).filter(|(size, _)| **size != 1) {
            match merged.last_mut() {
                Some(last) if last.stride == size * stride => {
                    let size = last.size * size;
                    *last = Dim { size, stride };
                }
                _ => merged.push(Dim { size, stride }),
            }
        }
        if merged.iter().any(|dim| dim.size == 0) {
            return None;
        }
        if merged.is_empty() {
            merged.push(Dim { size: 1, stride: 1 });
        }
        let fast = merged.iter().rposition(|dim| dim.stride == 1)?;
        Some(Self { dims: merged, fast })
    }

    /// Copies the tensor that starts at the start of `from`, on all threads.
    pub(crate) fn copy<T: Copy + Send + Sync>(&self, from: &[T], to: &mut [T]) {
        assert_eq!(to.len(), count(&self.dims));
        let (outer, inner) = self.dims.split_at(self.fast);
        match inner {
            [] => {}
            [run] => copy_runs(from, outer, run.size, to),
            [rows, middle @ .., columns] => {
                let rest = count(middle) * columns.size;
                // Rows enough to be worth a thread, in whole bands.
                let rows_of_a_task = (CHUNK / rest).max(BAND).next_multiple_of(BAND);
                let parts = to.par_chunks_mut(rows.size * rest).enumerate();
                let tasks = parts.flat_map(|(part, to)| {
                    let rows = to.par_chunks_mut(rows_of_a_task * rest);
                    rows.enumerate().map(move |(task, to)| (part, task, to))
                });
                tasks.for_each(|(part, task, to)| {
                    let from = &from[offset(outer, part) + task * rows_of_a_task..];
                    run(Transpose {
                        from,
                        to,
                        middle,
                        columns: *columns,
                    });
                });
            }
        }
    }
}

fn count(dims: &[Dim]) -> usize {
    dims.iter().map(|dim| dim.size).product()
}

/// Where the elements at this index of the dimensions start.
fn offset(dims: &[Dim], mut index: usize) -> usize {
    let mut offset = 0;
    for dim in dims.iter().rev() {
        offset += index % dim.size * dim.stride;
        index /= dim.size;
    }
    offset
}

/// Copies runs of contiguous elements.
fn copy_runs<T: Copy + Send + Sync>(from: &[T], outer: &[Dim], length: usize, to: &mut [T]) {
    let runs = (CHUNK / length).max(1);
    let tasks = to.par_chunks_mut(runs * length).enumerate();
    tasks.for_each(|(task, to)| {
        for (run, to) in to.chunks_exact_mut(length).enumerate() {
            let from = &from[offset(outer, task * runs + run)..];
            to.copy_from_slice(&from[..length]);
        }
    });
}

/// Transposes `from`, contiguous along the rows of `to`, for each index of the middle dimensions.
/// `to` is (rows, middle, columns).
struct Transpose<'a, T> {
    from: &'a [T],
    to: &'a mut [T],
    middle: &'a [Dim],
    columns: Dim,
}

impl<T: Copy> WithSimd for Transpose<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Dim { size, stride } = self.columns;
        let width = count(self.middle) * size;
        let rows = self.to.len() / width;
        for middle in 0..width / size {
            let from = &self.from[offset(self.middle, middle)..];
            let to = &mut self.to[middle * size..];
            for band in (0..rows).step_by(BAND) {
                let band = band..rows.min(band + BAND);
                // All tiles of a band before the next columns: they share the lines that were read.
                for column in (0..size).step_by(TILE) {
                    for row in band.clone().step_by(TILE) {
                        let from = &from[column * stride + row..];
                        let to = &mut to[row * width + column..];
                        let shape = (TILE.min(band.end - row), TILE.min(size - column));
                        if shape == (TILE, TILE) {
                            whole_tile(from, stride, to, width);
                        } else {
                            tile(from, stride, to, width, shape);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn whole_tile<T: Copy>(from: &[T], from_step: usize, to: &mut [T], to_step: usize) {
    let mut tile = [[from[0]; TILE]; TILE];
    for (column, values) in tile.iter_mut().enumerate() {
        values.copy_from_slice(&from[column * from_step..][..TILE]);
    }
    for row in 0..TILE {
        let to = &mut to[row * to_step..][..TILE];
        for column in 0..TILE {
            to[column] = tile[column][row];
        }
    }
}

/// A tile of fewer rows and columns.
#[inline(always)]
fn tile<T: Copy>(
    from: &[T],
    from_step: usize,
    to: &mut [T],
    to_step: usize,
    (rows, columns): (usize, usize),
) {
    for row in 0..rows {
        for column in 0..columns {
            to[row * to_step + column] = from[column * from_step + row];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element by element.
    fn expected(from: &[u32], dims: &[usize], strides: &[usize]) -> Vec<u32> {
        let dims = dims.iter().zip(strides);
        let dims: Vec<Dim> = dims.map(|(&size, &stride)| Dim { size, stride }).collect();
        (0..count(&dims)).map(|i| from[offset(&dims, i)]).collect()
    }

    fn check(dims: &[usize], strides: &[usize]) {
        let last: usize = dims.iter().zip(strides).map(|(d, s)| (d - 1) * s).sum();
        let from: Vec<u32> = (0..=last as u32).collect();
        let mut to = vec![u32::MAX; dims.iter().product()];
        Gather::new(dims, strides).unwrap().copy(&from, &mut to);
        assert!(to == expected(&from, dims, strides), "{dims:?} {strides:?}");
    }

    #[test]
    fn copies_follow_the_strides() {
        for rows in [1, 3, 7, 8, 13, 17, 64, 65, 1000] {
            for columns in [1, 3, 7, 8, 13, 17, 72] {
                // (batch, rows, columns) from (batch, columns, rows).
                check(&[3, rows, columns], &[rows * columns, 1, rows]);
            }
        }
        // (b, h, w, c) from (b, c, h, w), and back.
        check(&[2, 5, 9, 24], &[24 * 45, 9, 1, 45]);
        check(&[2, 24, 5, 9], &[24 * 45, 1, 9 * 24, 24]);
        // All dimensions turned around.
        check(&[9, 10, 11, 12], &[1, 9, 90, 990]);
        // (b, h, t, d) from (b, t, h, d): runs.
        check(&[2, 3, 5, 7], &[105, 7, 21, 1]);
        // A part of each row, the same rows again, one element.
        check(&[5, 3], &[10, 1]);
        check(&[4, 3, 6], &[0, 6, 1]);
        check(&[17, 4, 9], &[1, 0, 17]);
        check(&[1, 1], &[7, 3]);
        check(&[], &[]);
    }

    #[test]
    fn what_has_no_contiguous_dimension_is_left_to_others() {
        assert!(Gather::new(&[3, 4], &[8, 2]).is_none());
        assert!(Gather::new(&[3, 0], &[1, 3]).is_none());
        assert_eq!(Gather::new(&[2, 3, 4], &[12, 4, 1]).unwrap().dims.len(), 1);
    }
}

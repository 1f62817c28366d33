//! The linear map of rows, with a bias.

use super::matrix::{Matrix, Threads, multiply};
use super::simd::Element;
use rayon::prelude::*;

/// Bytes of a block of results that stay in a core's cache between two passes over them.
const CACHE: usize = 1 << 18;

/// Bytes of results from which it pays to work in blocks.
const LARGE: usize = 1 << 22;

/// y = x·w + bias, row by row: x is (rows, in), w (in, out), bias (out).
///
/// Large results are computed in blocks of rows, one thread each, so that the bias costs no pass
/// over memory of its own.
pub(crate) fn forward<T: Element>(
    y: &mut [T],
    x: &[T],
    w: Matrix<'_, T>,
    bias: Option<&[T]>,
    (inputs, outputs): (usize, usize),
) {
    if y.is_empty() {
        return;
    }
    let rows = y.len() / outputs;
    let Some(bias) = bias else {
        let x = Matrix::new(x, rows, inputs);
        return multiply(y, x, w, T::ONE, false, Threads::All);
    };
    let block = |y: &mut [T], x: &[T], threads| {
        for row in y.chunks_mut(outputs) {
            row.copy_from_slice(bias);
        }
        let x = Matrix::new(x, y.len() / outputs, inputs);
        multiply(y, x, w, T::ONE, true, threads);
    };
    if size_of_val(y) < LARGE || inputs == 0 {
        return block(y, x, Threads::All);
    }
    let rows = (CACHE / size_of::<T>() / outputs).max(64);
    let blocks = y.par_chunks_mut(rows * outputs);
    let blocks = blocks.zip(x.par_chunks(rows * inputs));
    blocks.for_each(|(y, x)| block(y, x, Threads::One));
}

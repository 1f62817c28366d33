//! Transposed matrices, and sums of columns.

use super::simd::Element;
use rayon::prelude::*;

/// Numbers that are worth a thread.
const WORK: usize = 1 << 18;

/// The sums of the columns of a matrix, on all threads.
pub(crate) fn column_sums<T: Element>(x: &[T], columns: usize) -> Vec<T> {
    let mut sums = vec![T::ZERO; columns];
    if x.is_empty() {
        return sums;
    }
    // Parts of a fixed size, so that the number of threads does not change the order of summation.
    let part = (WORK).next_multiple_of(columns);
    let partial = |x: &[T]| {
        let mut sums = vec![T::ZERO; columns];
        for row in x.chunks_exact(columns) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
        }
        sums
    };
    let parts: Vec<_> = match x.len() <= part {
        true => vec![partial(x)],
        false => x.par_chunks(part).map(partial).collect(),
    };
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    sums
}

/// The matrices of (rows, columns) in `x`, each transposed, on all threads.
pub(crate) fn transpose<T: Element>(x: &[T], y: &mut [T], rows: usize, columns: usize) {
    if y.is_empty() {
        return;
    }
    let (x, y) = (x.chunks(rows * columns), y.chunks_mut(rows * columns));
    if rows == 1 || columns == 1 {
        return x.zip(y).for_each(|(x, y)| y.copy_from_slice(x));
    }
    let pairs: Vec<_> = x.zip(y).collect();
    let block = (WORK / rows).next_multiple_of(16);
    let transpose = |(x, y): (&[T], &mut [T])| {
        // Blocks of the result's rows.
        let blocks = y.par_chunks_mut(block * rows).enumerate();
        blocks.for_each(|(index, y)| transpose_block(x, y, index * block, rows, columns));
    };
    match pairs.len() * rows * columns < WORK {
        true => pairs
            .into_iter()
            .for_each(|(x, y)| transpose_block(x, y, 0, rows, columns)),
        false => pairs.into_par_iter().for_each(transpose),
    }
}

/// The columns from `first` on as the rows of `y`.
pub(crate) fn transpose_block<T: Element>(
    x: &[T],
    y: &mut [T],
    first: usize,
    rows: usize,
    columns: usize,
) {
    const TILE: usize = 16;
    for (index, y) in y.chunks_mut(TILE * rows).enumerate() {
        let column = first + index * TILE;
        for row in (0..rows).step_by(TILE) {
            let height = TILE.min(rows - row);
            for (index, y) in y.chunks_exact_mut(rows).enumerate() {
                let x = x[row * columns + column + index..].iter().step_by(columns);
                for (y, &x) in y[row..][..height].iter_mut().zip(x) {
                    *y = x;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes() {
        for (count, rows, columns) in [(2, 3, 5), (1, 33, 17), (3, 1, 4), (1, 700, 500), (0, 2, 2)]
        {
            let x: Vec<f64> = (0..count * rows * columns).map(|i| i as f64).collect();
            let mut y = vec![-1.0; x.len()];
            transpose(&x, &mut y, rows, columns);
            for (index, &y) in y.iter().enumerate() {
                let (matrix, at) = (index / (rows * columns), index % (rows * columns));
                let at = at % rows * columns + at / rows;
                assert_eq!(y, (matrix * rows * columns + at) as f64);
            }
        }
    }

    #[test]
    fn sums_columns() {
        let x: Vec<f64> = (0..700_000).map(|i| f64::from(i % 7)).collect();
        assert_eq!(column_sums(&x, 7), [0.0, 1e5, 2e5, 3e5, 4e5, 5e5, 6e5]);
        assert_eq!(column_sums::<f32>(&[], 2), [0.0, 0.0]);
    }
}

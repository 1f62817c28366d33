//! The gradient of a table that rows were looked up in.

use super::simd::Element;
use rayon::prelude::*;

/// From so many numbers on, threads pay.
const LARGE: usize = 1 << 16;

/// Adds each row to that row of the sums, (count, dim), which its index names. Rows with an index
/// of `count` or more are left out.
pub(crate) fn add_rows<T: Element>(sums: &mut [T], rows: &[T], ids: &[usize], dim: usize) {
    if rows.is_empty() || sums.is_empty() {
        return;
    }
    let add = |first: usize, sums: &mut [T]| {
        let count = sums.len() / dim;
        for (&id, row) in ids.iter().zip(rows.chunks_exact(dim)) {
            if (first..first + count).contains(&id) {
                let sums = &mut sums[(id - first) * dim..][..dim];
                sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
            }
        }
    };
    if rows.len() < LARGE {
        return add(0, sums);
    }
    // Each task owns a part of the table and looks for the part's indices, so no two tasks add to
    // one row. There are four tasks for each thread, as some parts are used more.
    let parts = 4 * rayon::current_num_threads();
    let part = (sums.len() / dim).div_ceil(parts);
    let parts = sums.par_chunks_mut(part * dim).enumerate();
    parts.for_each(|(index, sums)| add(index * part, sums));
}

/// As [`add_rows`], into the columns of sums (dim, count).
pub(crate) fn add_columns<T: Element>(sums: &mut [T], rows: &[T], ids: &[usize], dim: usize) {
    if rows.is_empty() || sums.is_empty() {
        return;
    }
    let count = sums.len() / dim;
    let add = |(column, sums): (usize, &mut [T])| {
        for (&id, row) in ids.iter().zip(rows.chunks_exact(dim)) {
            if let Some(sum) = sums.get_mut(id) {
                *sum += row[column];
            }
        }
    };
    if rows.len() < LARGE {
        return sums.chunks_exact_mut(count).enumerate().for_each(add);
    }
    sums.par_chunks_exact_mut(count).enumerate().for_each(add);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_added_where_their_indices_say() {
        let ids = [1, 4, 1, usize::MAX];
        let rows: Vec<f32> = (1..=8).map(|x| x as f32).collect();
        let mut sums = [0.0; 10];
        add_rows(&mut sums, &rows, &ids, 2);
        assert_eq!(sums, [0., 0., 6., 8., 0., 0., 0., 0., 3., 4.]);
        let mut sums = [0.0; 10];
        add_columns(&mut sums, &rows, &ids, 2);
        assert_eq!(sums, [0., 6., 0., 0., 3., 0., 8., 0., 0., 4.]);
    }

    #[test]
    fn threads_compute_the_same() {
        let (count, dim) = (37, 5);
        let ids: Vec<usize> = (0..LARGE).map(|i| i * i % 41).collect();
        let rows: Vec<f64> = (0..ids.len() * dim).map(|i| (i % 97) as f64).collect();
        let mut expected = vec![0.0; count * dim];
        for (i, &id) in ids.iter().enumerate().filter(|&(_, &id)| id < count) {
            (0..dim).for_each(|j| expected[id * dim + j] += rows[i * dim + j]);
        }
        let mut sums = vec![0.0; count * dim];
        add_rows(&mut sums, &rows, &ids, dim);
        assert_eq!(sums, expected);
        let mut sums = vec![0.0; count * dim];
        add_columns(&mut sums, &rows, &ids, dim);
        let at = |i: usize| sums[i % dim * count + i / dim];
        assert!((0..expected.len()).all(|i| at(i) == expected[i]));
    }
}

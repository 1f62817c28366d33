//! The output, with what the backward pass needs to compute the probabilities again.

use super::{Attention, QUERIES, RowOrder, by_head, each, tile};
use crate::kernels::buffer::buffer;
use crate::kernels::matrix::{Matrix, Threads, multiply};
use crate::kernels::simd::{Element, run};
use std::ops::Range;

/// The output in the order (batch, queries, heads, dim), and for each row of scores the logarithm
/// of its sum of exponentials, (batch, heads, queries). Where a query sees no key both are 0.
pub(crate) fn forward<T: Element>(attention: &Attention<'_, T>) -> (Vec<T>, Vec<T>) {
    let sizes = attention.sizes;
    let rows = sizes.batch * sizes.heads * sizes.queries;
    let (mut output, mut log_sums) = (buffer(rows * sizes.value_dim), buffer(rows));
    forward_into(attention, &mut output, &mut log_sums);
    (output, log_sums)
}

/// As [`forward`], into memory with any content.
pub(crate) fn forward_into<T: Element>(
    attention: &Attention<'_, T>,
    output: &mut [T],
    log_sums: &mut [T],
) {
    let sizes = attention.sizes;
    let size = attention.rows_in_block();
    log_sums.fill(T::ZERO);
    let shape = (sizes.heads, sizes.queries, sizes.value_dim);
    let mut heads = by_head(output, RowOrder::RowsFirst, shape);
    let outputs = heads.iter_mut().flat_map(|rows| rows.chunks_mut(size));
    let sums = log_sums.chunks_mut(sizes.queries.max(1));
    let sums = sums.flat_map(|sums| sums.chunks_mut(size));
    let blocks = outputs.zip(sums).enumerate().collect();
    let blocks_of_head = attention.blocks();
    let work = || Work {
        scores: buffer(attention.tile()),
        gathered: buffer(size * sizes.value_dim),
    };
    each(
        blocks,
        attention.is_serial(),
        work,
        |work, (index, (output, sums))| {
            let (head, block) = (index / blocks_of_head, index % blocks_of_head);
            let head = (head / sizes.heads, head % sizes.heads);
            attention.output(work, head, attention.block(block), output, sums);
        },
    );
}

/// Memory of one thread.
struct Work<T> {
    scores: Vec<T>,
    gathered: Vec<T>,
}

impl<T: Element> Attention<'_, T> {
    /// The output and the sums of a block of queries.
    fn output(
        &self,
        work: &mut Work<T>,
        (batch, head): (usize, usize),
        queries: Range<usize>,
        output: &mut [&mut [T]],
        log_sums: &mut [T],
    ) {
        let (rows, width) = (queries.len(), self.sizes.value_dim);
        let kv = (batch, head / self.sizes.group());
        let (mut largest, mut sums) = ([T::of(f64::NEG_INFINITY); QUERIES], [T::ZERO; QUERIES]);
        let (largest, sums) = (&mut largest[..rows], &mut sums[..rows]);
        let gathered = &mut work.gathered[..rows * width];
        for (index, keys) in self.key_blocks(batch, &queries).enumerate() {
            let scores = &mut work.scores[..rows * keys.len()];
            self.scores(scores, None, (batch, head), &queries, &keys);
            // The first tile overwrites `gathered`, which holds anything before.
            let first = index == 0;
            let before = if first { 0 } else { gathered.len() };
            run(tile::Step {
                scores: &mut *scores,
                columns: keys.len(),
                largest: &mut *largest,
                sums: &mut *sums,
                gathered: &mut gathered[..before],
            });
            self.drop(scores, (batch, head), &queries, &keys);
            let scores = Matrix::new(scores, rows, keys.len());
            let v = self.v.rows(kv, keys, width);
            multiply(gathered, scores, v, T::ONE, !first, Threads::One);
        }
        for (row, output) in output.iter_mut().enumerate() {
            // The query saw no key, and its row of `gathered` may never have been written.
            if sums[row] == T::ZERO {
                output.fill(T::ZERO);
                continue;
            }
            log_sums[row] = largest[row] + sums[row].logarithm();
            let inverse = T::ONE / sums[row];
            let gathered = &gathered[row * width..][..width];
            for (y, &sum) in output.iter_mut().zip(gathered) {
                *y = sum * inverse;
            }
        }
    }
}

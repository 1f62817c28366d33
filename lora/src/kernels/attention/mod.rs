//! Attention in tiles of queries by keys, after FlashAttention, <https://arxiv.org/abs/2205.14135>:
//! neither pass ever holds the matrix of all queries by all keys.

mod backward;
mod forward;
mod tile;

pub(crate) use backward::{Given, Gradients, backward};
pub(crate) use forward::{forward, forward_into};

use super::dropout::Dropout;
use super::matrix::{Matrix, Threads, multiply};
use super::simd::{Element, run};
use rayon::prelude::*;
use std::ops::Range;

/// Queries in a tile at most. Each product with a tile first lays out its keys and values, which larger
/// tiles do less often.
const QUERIES: usize = 256;

/// Queries in a tile where each sees other keys: larger tiles hold more scores that nobody sees.
const QUERIES_OF_A_BAND: usize = 64;

/// Keys in a tile. A tile of scores, with its keys and values, stays in a core's cache.
const KEYS: usize = 256;

/// With fewer multiplications threads do not pay.
const SMALL: usize = 1 << 18;

/// A tensor of (batch, heads, rows, columns) in memory, with any steps along them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) steps: [usize; 4],
}

impl<'a, T: Element> Heads<'a, T> {
    fn rows(
        &self,
        (batch, head): (usize, usize),
        rows: Range<usize>,
        columns: usize,
    ) -> Matrix<'a, T> {
        let steps = (self.steps[2], self.steps[3]);
        let values = self.from(batch, head, rows.start, 0);
        Matrix::with_steps(values, (rows.len(), columns), steps)
    }

    /// The values from this one on.
    fn from(&self, batch: usize, head: usize, row: usize, column: usize) -> &'a [T] {
        let at = [batch, head, row, column].into_iter().zip(self.steps);
        let start: usize = at.map(|(index, step)| index * step).sum();
        self.values.get(start..).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    /// Divides `heads`.
    pub(crate) kv_heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    /// Of queries and keys.
    pub(crate) dim: usize,
    pub(crate) value_dim: usize,
}

impl Sizes {
    /// Query heads that share a head of keys and values.
    fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// An output of (batch, queries, heads, dim).
    fn output<'a, T>(&self, values: &'a [T]) -> Heads<'a, T> {
        let (row, dim) = (self.heads * self.value_dim, self.value_dim);
        Heads {
            values,
            steps: [self.queries * row, dim, row, 1],
        }
    }

    /// Whether the backward pass needs the output: not if all keys of a query are one tile, from which
    /// it computes what it would read of the output.
    pub(crate) fn needs_output(&self) -> bool {
        self.keys > KEYS
    }
}

/// Which keys a query sees, beside a mask: a range.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Visible<'a> {
    /// Those up to its own place, keys − queries + its number.
    pub(crate) causal: bool,
    /// At most so many before its place, and so many behind.
    pub(crate) window: Option<(usize, usize)>,
    /// Those of its sequence, for each query, (batch, queries); all if empty.
    pub(crate) sequences: &'a [Range<usize>],
}

impl Visible<'_> {
    /// The keys that a query sees.
    pub(crate) fn seen(&self, batch: usize, query: usize, sizes: &Sizes) -> Range<usize> {
        let Sizes { queries, keys, .. } = *sizes;
        // One more than the query's place, which may be before the first key.
        let end_at_place = (keys + query + 1).saturating_sub(queries);
        let mut seen = 0..keys;
        if self.causal {
            seen.end = end_at_place;
        }
        if let Some((before, behind)) = self.window {
            seen.start = end_at_place.saturating_sub(before.saturating_add(1));
            seen.end = seen.end.min(match end_at_place {
                0 => 0,
                end => end.saturating_add(behind),
            });
        }
        if let Some(sequence) = self.sequences.get(batch * queries + query) {
            seen.start = seen.start.max(sequence.start);
            seen.end = seen.end.min(sequence.end);
        }
        seen.end = seen.end.min(keys);
        seen.start = seen.start.min(seen.end);
        seen
    }
}

/// drop(softmax(cap(scale·q·kᵀ) + mask))·v
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention<'a, T> {
    pub(crate) q: Heads<'a, T>,
    pub(crate) k: Heads<'a, T>,
    pub(crate) v: Heads<'a, T>,
    pub(crate) mask: Option<Heads<'a, T>>,
    pub(crate) sizes: Sizes,
    pub(crate) visible: Visible<'a>,
    pub(crate) dropout: Option<Dropout>,
    pub(crate) scale: f64,
    /// Scores s become cap·tanh(s / cap).
    pub(crate) cap: Option<f64>,
    /// The place of the first of these examples in the batch that the dropout is drawn for.
    pub(crate) first: usize,
    pub(crate) threads: Threads,
}

impl<T: Element> Attention<'_, T> {
    /// Whether one thread does all of it.
    fn is_serial(&self) -> bool {
        let sizes = &self.sizes;
        let scores = sizes.batch * sizes.heads * sizes.queries * sizes.keys;
        self.threads == Threads::One || scores * (sizes.dim + sizes.value_dim) < SMALL
    }

    /// Queries in a block.
    fn rows_in_block(&self) -> usize {
        let Sizes { queries, .. } = self.sizes;
        let is_band = self.visible.causal || self.visible.window.is_some();
        // A band of long sequences is almost full in larger tiles, too.
        let most = match is_band {
            true => (queries / 16).clamp(QUERIES_OF_A_BAND, 2 * QUERIES_OF_A_BAND),
            false => QUERIES,
        };
        // Blocks of about the same size.
        queries.div_ceil(queries.div_ceil(most).max(1)).max(1)
    }

    /// The number of blocks of queries for each head.
    fn blocks(&self) -> usize {
        self.sizes.queries.div_ceil(self.rows_in_block())
    }

    fn block(&self, index: usize) -> Range<usize> {
        let rows = self.rows_in_block();
        let start = index * rows;
        start..(start + rows).min(self.sizes.queries)
    }

    /// Numbers in a tile.
    fn tile(&self) -> usize {
        self.rows_in_block() * self.sizes.keys.min(KEYS)
    }

    /// Tiles along the keys that any of these queries sees.
    fn key_blocks(
        &self,
        batch: usize,
        queries: &Range<usize>,
    ) -> impl Iterator<Item = Range<usize>> + use<T> {
        let seen = queries.clone().map(|query| self.seen(batch, query));
        let seen = seen.filter(|seen| !seen.is_empty());
        let all = seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        let Range { start, end } = all.unwrap_or_default();
        let starts = (start..end).step_by(KEYS);
        starts.map(move |start| start..(start + KEYS).min(end))
    }

    fn seen(&self, batch: usize, query: usize) -> Range<usize> {
        self.visible.seen(batch, query, &self.sizes)
    }

    /// Drops from the probabilities of a tile, or from their gradients.
    fn drop(
        &self,
        tile: &mut [T],
        (batch, head): (usize, usize),
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) {
        let Some(dropout) = &self.dropout else {
            return;
        };
        let first = ((self.first + batch) * self.sizes.heads + head) * self.sizes.queries;
        for (query, row) in queries.clone().zip(tile.chunks_exact_mut(keys.len())) {
            dropout.in_place(row, (first + query) * self.sizes.keys + keys.start);
        }
    }

    /// The scores of a tile, −∞ where masked. `slopes` gets the derivative of the cap, if there is
    /// one.
    fn scores(
        &self,
        scores: &mut [T],
        slopes: Option<&mut [T]>,
        (batch, head): (usize, usize),
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) {
        let kv = (batch, head / self.sizes.group());
        let q = self.q.rows((batch, head), queries.clone(), self.sizes.dim);
        let k = self.k.rows(kv, keys.clone(), self.sizes.dim);
        multiply(scores, q, k.t(), T::of(self.scale), false, Threads::One);
        if let Some(cap) = self.cap {
            run(tile::Cap {
                scores: &mut *scores,
                slopes,
                cap,
            });
        }
        let rows = || queries.clone().zip(0..);
        if let Some(mask) = &self.mask {
            for ((query, _), scores) in rows().zip(scores.chunks_exact_mut(keys.len())) {
                add_row(
                    scores,
                    mask.from(batch, head, query, keys.start),
                    mask.steps[3],
                );
            }
        }
        let hidden = T::of(f64::NEG_INFINITY);
        for ((query, _), scores) in rows().zip(scores.chunks_exact_mut(keys.len())) {
            let seen = self.seen(batch, query);
            let start = seen.start.clamp(keys.start, keys.end) - keys.start;
            let end = seen.end.clamp(keys.start, keys.end) - keys.start;
            scores[..start].fill(hidden);
            scores[end.max(start)..].fill(hidden);
        }
    }
}

/// Adds a row of a mask with this step between its values.
fn add_row<T: Element>(scores: &mut [T], mask: &[T], step: usize) {
    match step {
        0 => {
            let value = mask[0];
            scores.iter_mut().for_each(|score| *score += value);
        }
        1 => scores
            .iter_mut()
            .zip(mask)
            .for_each(|(score, &value)| *score += value),
        _ => {
            let mask = mask.iter().step_by(step);
            scores
                .iter_mut()
                .zip(mask)
                .for_each(|(score, &value)| *score += value);
        }
    }
}

/// How the rows of a result lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// (batch, heads, rows, dim)
    HeadsFirst,
    /// (batch, rows, heads, dim), as a projection to all heads gives it.
    RowsFirst,
}

/// The rows of every head of a result, by batch and head, each `dim` numbers.
fn by_head<T>(
    values: &mut [T],
    order: RowOrder,
    (heads, rows, dim): (usize, usize, usize),
) -> Vec<Vec<&mut [T]>> {
    let mut result = Vec::new();
    if heads * rows * dim == 0 {
        return result;
    }
    for batch in values.chunks_exact_mut(heads * rows * dim) {
        let start = result.len();
        result.extend((0..heads).map(|_| Vec::with_capacity(rows)));
        for (index, row) in batch.chunks_exact_mut(dim).enumerate() {
            let head = match order {
                RowOrder::HeadsFirst => index / rows,
                RowOrder::RowsFirst => index % heads,
            };
            result[start + head].push(row);
        }
    }
    result
}

/// Runs tasks on all threads, or on this one.
fn each<I: Send, R: Send, W>(
    tasks: Vec<I>,
    serial: bool,
    work: impl Fn() -> W + Send + Sync,
    task: impl Fn(&mut W, I) -> R + Send + Sync,
) -> Vec<R> {
    if serial || tasks.len() < 2 {
        let mut work = work();
        return tasks
            .into_iter()
            .map(|each| task(&mut work, each))
            .collect();
    }
    let tasks = tasks.into_par_iter();
    tasks.map_init(work, task).collect()
}

#[cfg(test)]
mod tests;

//! Attention in tiles of queries by keys, after FlashAttention, <https://arxiv.org/abs/2205.14135>:
//! neither pass ever holds the matrix of all queries by all keys.

mod backward;
mod forward;
mod tile;

pub(crate) use backward::{Given, Gradients, backward};
pub(crate) use forward::forward;

use super::matrix::{Matrix, Threads, multiply};
use super::simd::{Element, run};
use rayon::prelude::*;
use std::ops::Range;

/// Queries in a tile.
const QUERIES: usize = 64;

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

    /// The number of blocks of queries for each head.
    fn blocks(&self) -> usize {
        self.queries.div_ceil(QUERIES)
    }

    fn block(&self, index: usize) -> Range<usize> {
        let start = index * QUERIES;
        start..(start + QUERIES).min(self.queries)
    }

    /// Numbers in a tile.
    fn tile(&self) -> usize {
        self.queries.min(QUERIES) * self.keys.min(KEYS)
    }

    /// An output of (batch, queries, heads, dim).
    fn output<'a, T>(&self, values: &'a [T]) -> Heads<'a, T> {
        let (row, dim) = (self.heads * self.value_dim, self.value_dim);
        Heads {
            values,
            steps: [self.queries * row, dim, row, 1],
        }
    }

    fn is_small(&self) -> bool {
        let scores = self.batch * self.heads * self.queries * self.keys;
        scores * (self.dim + self.value_dim) < SMALL
    }
}

/// softmax(cap(scale·q·kᵀ) + mask)·v
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention<'a, T> {
    pub(crate) q: Heads<'a, T>,
    pub(crate) k: Heads<'a, T>,
    pub(crate) v: Heads<'a, T>,
    pub(crate) mask: Option<Heads<'a, T>>,
    pub(crate) sizes: Sizes,
    /// Query i sees the keys up to keys − queries + i.
    pub(crate) causal: bool,
    pub(crate) scale: f64,
    /// Scores s become cap·tanh(s / cap).
    pub(crate) cap: Option<f64>,
}

impl<T: Element> Attention<'_, T> {
    /// The number of keys that a query sees.
    fn seen(&self, query: usize) -> usize {
        let Sizes { queries, keys, .. } = self.sizes;
        match self.causal {
            true => (keys + query + 1).saturating_sub(queries).min(keys),
            false => keys,
        }
    }

    /// Tiles along the keys. A tile that none of the queries sees is left out.
    fn key_blocks(&self, queries: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        let end = self.seen(queries.end.saturating_sub(1));
        let starts = (0..end).step_by(KEYS);
        starts.map(move |start| start..(start + KEYS).min(end))
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
        // The first query sees the fewest keys: most tiles hide none and skip this.
        if self.seen(queries.start) < keys.end {
            for ((query, _), scores) in rows().zip(scores.chunks_exact_mut(keys.len())) {
                let seen = self.seen(query).clamp(keys.start, keys.end);
                scores[seen - keys.start..].fill(T::of(f64::NEG_INFINITY));
            }
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

/// Runs tasks on all threads, or on this one if they are small.
fn each<I: Send, R: Send, W>(
    tasks: Vec<I>,
    small: bool,
    work: impl Fn() -> W + Send + Sync,
    task: impl Fn(&mut W, I) -> R + Send + Sync,
) -> Vec<R> {
    if small || tasks.len() < 2 {
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

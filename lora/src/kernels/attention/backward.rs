//! The gradients of queries, keys and values.

use super::{Attention, QUERIES, RowOrder, Sizes, by_head, each, tile};
use crate::kernels::buffer::buffer;
use crate::kernels::matrix::{Matrix, Threads, multiply};
use crate::kernels::simd::{Element, run};
use std::ops::Range;

/// Which gradients are wanted and in which memory order; after the pass, the gradients themselves.
#[derive(Debug)]
pub(crate) struct Gradients<G> {
    pub(crate) q: Option<G>,
    pub(crate) k: Option<G>,
    pub(crate) v: Option<G>,
}

/// The results of the forward pass, and the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a, T> {
    /// (batch, queries, heads, dim); may be missing unless [`Sizes::needs_output`].
    pub(crate) output: Option<&'a [T]>,
    /// (batch, queries, heads, dim)
    pub(crate) grad: &'a [T],
    /// (batch, heads, queries)
    pub(crate) log_sums: &'a [T],
}

/// A block of queries, and where its gradient goes.
struct Block<'a, 'b, T> {
    head: usize,
    queries: Range<usize>,
    on_q: Option<&'a mut [&'b mut [T]]>,
}

/// Blocks of queries that share a head of keys and values.
struct Task<'a, 'b, T> {
    batch: usize,
    blocks: Vec<Block<'a, 'b, T>>,
}

/// The gradients of all keys and values of a head, from the blocks of one task.
struct Sums<T> {
    on_k: Vec<T>,
    on_v: Vec<T>,
}

/// Computes the probabilities again, tile by tile, and from them the wanted gradients.
///
/// The queries that share a head of keys and values are one task, or a few tasks where there are
/// more threads than heads. Each task sums the gradients of all keys and values for itself, so that
/// no two threads add to the same number.
pub(crate) fn backward<T: Element>(
    attention: &Attention<'_, T>,
    given: Given<'_, T>,
    wanted: &Gradients<RowOrder>,
) -> Gradients<Vec<T>> {
    let sizes = attention.sizes;
    let empty = sizes.batch * sizes.heads * sizes.queries * sizes.keys * sizes.value_dim == 0;
    let memory = |wanted: Option<RowOrder>, heads: usize, rows: usize, dim: usize| {
        let count = sizes.batch * heads * rows * dim;
        wanted.map(|_| match empty {
            true => vec![T::ZERO; count],
            // Each row is written, by its task or from the sums of its head.
            false => buffer(count),
        })
    };
    let mut result = Gradients {
        q: memory(wanted.q, sizes.heads, sizes.queries, sizes.dim),
        k: memory(wanted.k, sizes.kv_heads, sizes.keys, sizes.dim),
        v: memory(wanted.v, sizes.kv_heads, sizes.keys, sizes.value_dim),
    };
    if empty {
        return result;
    }
    let shape = (sizes.heads, sizes.queries, sizes.dim);
    let size = attention.rows_in_block();
    let mut on_q = rows_of(result.q.as_deref_mut(), wanted.q, shape);
    let blocks = on_q.iter_mut().flat_map(|rows| rows.chunks_mut(size));
    let (splits, serial) = (splits(attention), attention.is_serial());
    let tasks = tasks(attention, splits, blocks);
    let work = || Work {
        probabilities: buffer(attention.tile()),
        on_scores: buffer(attention.tile()),
        slopes: attention.cap.map(|_| buffer(attention.tile())),
        dropped: attention.dropout.map(|_| buffer(attention.tile())),
        on_q: buffer(size * sizes.dim),
    };
    let sums = each(tasks, serial, work, |work, task| {
        attention.gradients(given, work, task, (wanted.k.is_some(), wanted.v.is_some()))
    });
    let shape = (sizes.kv_heads, sizes.keys, sizes.dim);
    let on_k = rows_of(result.k.as_deref_mut(), wanted.k, shape);
    gather(on_k, &sums, splits, serial, |sums| &sums.on_k);
    let shape = (sizes.kv_heads, sizes.keys, sizes.value_dim);
    let on_v = rows_of(result.v.as_deref_mut(), wanted.v, shape);
    gather(on_v, &sums, splits, serial, |sums| &sums.on_v);
    result
}

/// In how many tasks the work on a head of keys and values is split.
fn splits<T: Element>(attention: &Attention<'_, T>) -> usize {
    let sizes = &attention.sizes;
    let threads = rayon::current_num_threads();
    if threads == 1 || attention.is_serial() {
        return 1;
    }
    // Two for each thread, as tasks take different times.
    let splits = (2 * threads).div_ceil(sizes.batch * sizes.kv_heads);
    splits.min(sizes.group() * attention.blocks())
}

fn tasks<'a, 'b, T: Element>(
    attention: &Attention<'_, T>,
    splits: usize,
    mut on_q: impl Iterator<Item = &'a mut [&'b mut [T]]>,
) -> Vec<Task<'a, 'b, T>> {
    let (sizes, blocks) = (attention.sizes, attention.blocks());
    let mut tasks = Vec::with_capacity(sizes.batch * sizes.kv_heads * splits);
    for batch in 0..sizes.batch {
        for kv in 0..sizes.kv_heads {
            let start = tasks.len();
            tasks.extend((0..splits).map(|_| Task {
                batch,
                blocks: Vec::new(),
            }));
            for index in 0..sizes.group() * blocks {
                // Dealt out in turn: with a causal mask later blocks take longer.
                tasks[start + index % splits].blocks.push(Block {
                    head: kv * sizes.group() + index / blocks,
                    queries: attention.block(index % blocks),
                    on_q: on_q.next(),
                });
            }
        }
    }
    tasks
}

fn rows_of<T>(
    values: Option<&mut [T]>,
    order: Option<RowOrder>,
    shape: (usize, usize, usize),
) -> Vec<Vec<&mut [T]>> {
    match (values, order) {
        (Some(values), Some(order)) => by_head(values, order, shape),
        _ => Vec::new(),
    }
}

/// Adds up the sums of each head's tasks, in the rows of the result.
fn gather<T: Element>(
    heads: Vec<Vec<&mut [T]>>,
    sums: &[Sums<T>],
    splits: usize,
    serial: bool,
    part: impl Fn(&Sums<T>) -> &[T] + Sync,
) {
    let heads = heads.into_iter().zip(sums.chunks(splits)).collect();
    each(
        heads,
        serial,
        || (),
        |(), (mut rows, sums)| {
            let width = rows.first().map_or(1, |row| row.len());
            for (index, sums) in sums.iter().enumerate() {
                for (row, sums) in rows.iter_mut().zip(part(sums).chunks_exact(width)) {
                    match index {
                        0 => row.copy_from_slice(sums),
                        _ => row
                            .iter_mut()
                            .zip(sums)
                            .for_each(|(sum, &more)| *sum += more),
                    }
                }
            }
        },
    );
}

/// Memory of one thread.
struct Work<T> {
    probabilities: Vec<T>,
    on_scores: Vec<T>,
    slopes: Option<Vec<T>>,
    /// Probabilities after dropout.
    dropped: Option<Vec<T>>,
    on_q: Vec<T>,
}

impl<T: Element> Attention<'_, T> {
    fn gradients(
        &self,
        given: Given<'_, T>,
        work: &mut Work<T>,
        task: Task<'_, '_, T>,
        (wants_k, wants_v): (bool, bool),
    ) -> Sums<T> {
        let sizes = self.sizes;
        let zeros = |wanted, dim| vec![T::ZERO; if wanted { sizes.keys * dim } else { 0 }];
        let mut sums = Sums {
            on_k: zeros(wants_k, sizes.dim),
            on_v: zeros(wants_v, sizes.value_dim),
        };
        for block in task.blocks {
            self.block_gradients(given, work, task.batch, block, &mut sums);
        }
        sums
    }

    fn block_gradients(
        &self,
        given: Given<'_, T>,
        work: &mut Work<T>,
        batch: usize,
        block: Block<'_, '_, T>,
        sums: &mut Sums<T>,
    ) {
        let Sizes { dim, value_dim, .. } = self.sizes;
        let Block {
            head,
            queries,
            on_q: output,
        } = block;
        let kv = (batch, head / self.sizes.group());
        let rows = queries.len();
        let log_sums = (batch * self.sizes.heads + head) * self.sizes.queries;
        let log_sums = &given.log_sums[log_sums..][queries.clone()];
        let grads = self.sizes.output(given.grad);
        let grad = grads.rows((batch, head), queries.clone(), value_dim);
        let q = self.q.rows((batch, head), queries.clone(), dim);
        let wants_q = output.is_some();
        let on_q = &mut work.on_q[..rows * dim];
        on_q.fill(T::ZERO);
        let mut along = [T::ZERO; QUERIES];
        let along = &mut along[..rows];
        if let Some(outputs) = given.output.map(|values| self.sizes.output(values)) {
            run(tile::Along {
                grads: grads.from(batch, head, queries.start, 0),
                outputs: outputs.from(batch, head, queries.start, 0),
                step: grads.steps[2],
                width: value_dim,
                along: &mut *along,
            });
        }
        let along = given.output.map(|_| &*along);
        for keys in self.key_blocks(batch, &queries) {
            let columns = keys.len();
            let tile = ..rows * columns;
            let p = &mut work.probabilities[tile];
            let mut slopes = work.slopes.as_mut().map(|slopes| &mut slopes[tile]);
            self.scores(p, slopes.as_deref_mut(), (batch, head), &queries, &keys);
            run(tile::Probabilities {
                scores: &mut *p,
                columns,
                log_sums,
            });
            if !sums.on_v.is_empty() {
                let mut dropped = work.dropped.as_mut().map(|dropped| &mut dropped[tile]);
                let p = match &mut dropped {
                    None => &*p,
                    Some(dropped) => {
                        dropped.copy_from_slice(p);
                        self.drop(dropped, (batch, head), &queries, &keys);
                        &**dropped
                    }
                };
                let p = Matrix::new(p, rows, columns);
                let on_v = &mut sums.on_v[keys.start * value_dim..keys.end * value_dim];
                multiply(on_v, p.t(), grad, T::ONE, true, Threads::One);
            }
            if !wants_q && sums.on_k.is_empty() {
                continue;
            }
            let on_scores = &mut work.on_scores[tile];
            let v = self.v.rows(kv, keys.clone(), value_dim);
            multiply(on_scores, grad, v.t(), T::ONE, false, Threads::One);
            self.drop(on_scores, (batch, head), &queries, &keys);
            run(tile::OnScores {
                grads: &mut *on_scores,
                probabilities: p,
                columns,
                along,
                slopes: slopes.as_deref(),
            });
            let on_scores = Matrix::new(on_scores, rows, columns);
            let scale = T::of(self.scale);
            if !sums.on_k.is_empty() {
                let on_k = &mut sums.on_k[keys.start * dim..keys.end * dim];
                multiply(on_k, on_scores.t(), q, scale, true, Threads::One);
            }
            if wants_q {
                let k = self.k.rows(kv, keys, dim);
                multiply(on_q, on_scores, k, scale, true, Threads::One);
            }
        }
        if let Some(output) = output {
            for (output, on_q) in output.iter_mut().zip(on_q.chunks_exact(dim)) {
                output.copy_from_slice(on_q);
            }
        }
    }
}

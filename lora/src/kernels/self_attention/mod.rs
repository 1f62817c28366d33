//! Attention of sequences to themselves with its layers, in groups of sequences: norm, queries, keys and
//! values, attention, the layer behind, factor and shortcut. A group stays with one thread from the
//! first layer to the last, so that what lies between the layers is never held for all sequences.

mod backward;
mod forward;

use super::adapted::{LinearKernel, UpdateGrads};
use super::attention::{Attention, Heads, Sizes, Visible};
use super::blocks::{blocks, each_thread};
use super::buffer::room;
use super::dropout::Dropout;
use super::matrix::Threads;
use super::rope::Tables;
use super::rows::{Norm, Shortcut, part};
use super::simd::Element;

/// The parts of the block. Rows of x are as wide as the inputs of the layers, those of the shortcut and
/// the result as the outputs of the last.
pub(crate) struct SelfAttention<'a, T: Element> {
    pub(crate) norm: Option<Norm<'a, T>>,
    /// What makes queries, keys and values.
    pub(crate) inputs: [LinearKernel<'a, T>; 3],
    /// Of queries and keys: over each head, or over all heads together.
    pub(crate) head_norms: [Option<Norm<'a, T>>; 2],
    pub(crate) rope: Option<Tables<'a, T>>,
    /// The attention of all sequences, without its queries, keys and values.
    pub(crate) core: Attention<'a, T>,
    pub(crate) output: LinearKernel<'a, T>,
    pub(crate) dropout: Option<Dropout>,
    pub(crate) gamma: Option<&'a [T]>,
    /// A shortcut from within; any other is an argument.
    pub(crate) shortcut: Option<Shortcut>,
}

/// What is kept of all rows for the backward pass.
pub(crate) struct Kept<T> {
    /// Queries, keys and values: queries and keys as they are before their norms, or, without norms,
    /// after their turn. Empty where they are computed anew.
    inputs: [Vec<T>; 3],
    /// What the last layer sees; empty where it is not needed or computed anew.
    output: Vec<T>,
    /// The logarithms of the sums of the softmax.
    log_sums: Vec<T>,
    /// The inputs of each layer's B: of queries, keys, values and of the last layer.
    t: [Vec<T>; 4],
}

/// The gradients of the updates, in the order of [`Kept::t`].
pub(crate) type Grads<T> = [Option<UpdateGrads<T>>; 4];

/// The sequences that are computed together.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    count: usize,
    threads: Threads,
}

impl<T: Element> SelfAttention<'_, T> {
    /// The groups of all sequences.
    fn groups(&self) -> Vec<Group> {
        let Sizes { batch, queries, .. } = self.core.sizes;
        let size = size_of::<T>();
        let layers = || self.inputs.iter().chain([&self.output]);
        let weights = layers().map(|layer| layer.inputs * layer.outputs);
        let weights = size * weights.sum::<usize>();
        let widest = layers().map(|layer| layer.inputs.max(layer.outputs)).max();
        let bytes = size * widest.unwrap_or(1);
        let rows = batch * queries;
        let (rows, mut threads) =
            each_thread(rows, weights).unwrap_or_else(|| blocks(rows, bytes, weights));
        let workers = rayon::current_num_threads();
        // Groups of different sizes let threads wait: with few of them all threads share the steps.
        if batch < workers || (batch % workers != 0 && batch < 4 * workers) {
            threads = Threads::All;
        }
        let count = match threads {
            Threads::All => batch,
            Threads::One => {
                let groups = batch.div_ceil(rows.div_ceil(queries.max(1)).max(1));
                batch.div_ceil(groups.next_multiple_of(workers))
            }
        };
        let groups = (0..batch).step_by(count.max(1)).map(|first| Group {
            first,
            count: count.min(batch - first),
            threads,
        });
        groups.collect()
    }

    /// The layers in the order of [`Kept::t`].
    fn layers(&self) -> [&LinearKernel<'_, T>; 4] {
        let [q, k, v] = &self.inputs;
        [q, k, v, &self.output]
    }

    /// Whether the backward pass reads what the last layer sees.
    fn needs_output(&self) -> bool {
        self.output.rank() > 0 || self.core.sizes.needs_output()
    }

    /// The attention of a group.
    fn core<'b>(&'b self, group: Group, [q, k, v]: [&'b [T]; 3]) -> Attention<'b, T> {
        let Attention {
            sizes,
            visible,
            mask,
            ..
        } = self.core;
        let heads = |values, count| {
            let width = count * sizes.dim;
            Heads {
                values,
                steps: [sizes.queries * width, sizes.dim, width, 1],
            }
        };
        let sequences = visible.sequences;
        Attention {
            q: heads(q, sizes.heads),
            k: heads(k, sizes.kv_heads),
            v: heads(v, sizes.kv_heads),
            mask: mask.map(|mask| Heads {
                values: &mask.values[group.first * mask.steps[0]..],
                ..mask
            }),
            sizes: Sizes {
                batch: group.count,
                ..sizes
            },
            visible: Visible {
                sequences: match sequences.is_empty() {
                    true => sequences,
                    false => &sequences[group.first * sizes.queries..],
                },
                ..visible
            },
            first: group.first,
            threads: group.threads,
            ..self.core
        }
    }

    /// Turns queries or keys of a group, or turns their gradients back.
    fn turn(&self, index: usize, values: &mut [T], group: Group, back: bool) {
        if let (Some(rope), true) = (&self.rope, index < 2) {
            let Sizes { queries, dim, .. } = self.core.sizes;
            let shape = (self.inputs[index].outputs, dim);
            rope.turn(values, shape, group.first * queries, back, group.threads);
        }
    }

    fn head_norm(&self, index: usize) -> Option<&Norm<'_, T>> {
        self.head_norms.get(index)?.as_ref()
    }

    /// Queries, keys or values of a group: `kept` gets them as [`Kept::inputs`] says, unless it is empty.
    /// `t` is as [`LinearKernel::forward`] wants it.
    fn make<'b>(
        &self,
        index: usize,
        normed: &[T],
        group: Group,
        kept: &'b mut [T],
        memory: &'b mut Input<T>,
        t: &mut [T],
    ) -> Made<'b, T> {
        let (layer, queries) = (&self.inputs[index], self.core.sizes.queries);
        let projected = match kept.is_empty() {
            true => room(&mut memory.projected, group.count * queries * layer.outputs),
            false => kept,
        };
        let first = group.first * queries;
        layer.forward(normed, projected, t, first, group.threads);
        let Input { heads, stats, .. } = memory;
        match self.head_norm(index) {
            Some(norm) => self.normed_heads((index, norm), projected, group, (heads, stats)),
            None => {
                self.turn(index, projected, group, false);
                Made::of(projected)
            }
        }
    }

    /// The same from what was kept of it, if anything was.
    fn make_again<'b>(
        &self,
        index: usize,
        normed: &[T],
        group: Group,
        kept: &'b [T],
        memory: &'b mut Input<T>,
    ) -> Made<'b, T> {
        let queries = self.core.sizes.queries;
        let (first, rows) = (group.first * queries, group.count * queries);
        let kept = part(kept, first, rows, self.inputs[index].outputs);
        if kept.is_empty() {
            return self.make(index, normed, group, &mut [], memory, &mut []);
        }
        let Input { heads, stats, .. } = memory;
        match self.head_norm(index) {
            Some(norm) => self.normed_heads((index, norm), kept, group, (heads, stats)),
            None => Made::of(kept),
        }
    }

    /// Queries or keys behind their norm and turned, from what is in front of the norm.
    fn normed_heads<'b>(
        &self,
        (index, norm): (usize, &Norm<'_, T>),
        projected: &'b [T],
        group: Group,
        (heads, stats): (&'b mut Vec<T>, &'b mut Vec<T>),
    ) -> Made<'b, T> {
        let heads = room(heads, projected.len());
        let stats = room(stats, 2 * projected.len() / norm.weight.len());
        norm.forward(projected, heads, stats, group.threads);
        self.turn(index, heads, group, false);
        Made {
            heads,
            projected,
            stats,
        }
    }

    fn no_grads(&self) -> Grads<T> {
        self.layers().map(LinearKernel::no_grads)
    }
}

/// Queries, keys or values of a group.
struct Made<'a, T> {
    /// As the attention takes them.
    heads: &'a [T],
    /// In front of the norm, and what the norm's backward pass needs.
    projected: &'a [T],
    stats: &'a [T],
}

impl<'a, T> Made<'a, T> {
    /// Those without a norm.
    fn of(heads: &'a [T]) -> Self {
        Self {
            heads,
            projected: heads,
            stats: &[],
        }
    }
}

/// The memory that a group is computed in, beside arguments and results.
struct Scratch<T> {
    normed: Vec<T>,
    stats: Vec<T>,
    inputs: [Input<T>; 3],
    output: Vec<T>,
    log_sums: Vec<T>,
    scaled: Vec<T>,
    on_output: Vec<T>,
    on_projected: Vec<T>,
    on_normed: Vec<T>,
}

/// The memory of queries, keys or values.
struct Input<T> {
    projected: Vec<T>,
    heads: Vec<T>,
    stats: Vec<T>,
}

impl<T: Element> Scratch<T> {
    fn new() -> Self {
        let none = Vec::new;
        Self {
            normed: none(),
            stats: none(),
            inputs: [(); 3].map(|()| Input {
                projected: none(),
                heads: none(),
                stats: none(),
            }),
            output: none(),
            log_sums: none(),
            scaled: none(),
            on_output: none(),
            on_projected: none(),
            on_normed: none(),
        }
    }
}

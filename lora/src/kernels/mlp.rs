//! A residual MLP of rows, y = shortcut + gamma·fc2(act(fc1(norm(x)))), in blocks of rows that stay
//! in a core's cache from the first layer to the last.

use super::activation::{self, Function};
use super::adapted::{LinearKernel, Seen, UpdateGrads};
use super::blocks::{blocks, take};
use super::buffer::buffer;
use super::matrix::Threads;
use super::norm;
use super::simd::{Element, Vector, run};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::marker::PhantomData;

/// The parts of the block. Rows of x are `fc1.inputs` wide, those of the shortcut and the result
/// `fc2.outputs`.
pub(crate) struct Mlp<'a, T: Element, F> {
    pub(crate) norm: Option<Norm<'a, T>>,
    pub(crate) fc1: LinearKernel<'a, T>,
    pub(crate) act: PhantomData<F>,
    pub(crate) fc2: LinearKernel<'a, T>,
    pub(crate) gamma: Option<&'a [T]>,
}

/// A normalisation of rows.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a, T> {
    pub(crate) weight: &'a [T],
    pub(crate) bias: Option<&'a [T]>,
    pub(crate) eps: f64,
    pub(crate) remove_mean: bool,
}

/// What the forward pass leaves for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: there is no backward pass.
    Nothing,
    /// All but the hidden values, which the backward pass computes anew.
    Little,
    /// The hidden values before the activation too.
    Hidden,
}

/// The kept values of all rows.
pub(crate) struct Kept<T> {
    /// Mean and 1 / standard deviation of each row; empty without a norm.
    stats: Vec<T>,
    /// The hidden values before the activation; empty where they are computed anew.
    hidden: Vec<T>,
    /// The inputs of each layer's B.
    t1: Vec<T>,
    t2: Vec<T>,
}

/// The memory that a block of rows works in, beside its arguments and results.
struct Scratch<T>(Vec<T>);

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Element> Scratch<T> {
    /// Memory for so many numbers, with any content.
    fn of(&mut self, count: usize) -> &mut [T] {
        if self.0.len() < count {
            self.0 = buffer(count);
        }
        &mut self.0[..count]
    }
}

impl<T: Element, F: Function> Mlp<'_, T, F> {
    fn blocks(&self, rows: usize) -> (usize, Threads) {
        let (width, hidden) = (self.fc1.inputs, self.fc1.outputs);
        let size = size_of::<T>();
        blocks(rows, hidden * size, 2 * width * hidden * size)
    }

    /// Writes the result to `y`, and returns what the backward pass needs.
    pub(crate) fn forward(
        &self,
        x: &[T],
        shortcut: Option<&[T]>,
        y: &mut [T],
        keep: Keep,
    ) -> Kept<T> {
        struct Block<'a, T> {
            first: usize,
            y: &'a mut [T],
            stats: &'a mut [T],
            hidden: &'a mut [T],
            t1: &'a mut [T],
            t2: &'a mut [T],
        }

        let (width, hidden, outputs) = (self.fc1.inputs, self.fc1.outputs, self.fc2.outputs);
        let rows = y.len().checked_div(outputs).unwrap_or(0);
        let (size, threads) = self.blocks(rows);
        let of = |wanted: bool, count: usize| if wanted { count } else { 0 };
        let tracked = keep != Keep::Nothing;
        let per_stats = of(self.norm.is_some(), 2);
        let per_hidden = of(keep == Keep::Hidden, hidden);
        let (per_t1, per_t2) = (of(tracked, self.fc1.rank()), of(tracked, self.fc2.rank()));
        let mut kept = Kept {
            stats: buffer(rows * per_stats),
            hidden: buffer(rows * per_hidden),
            t1: buffer(rows * per_t1),
            t2: buffer(rows * per_t2),
        };
        let (mut y, mut stats) = (y, &mut kept.stats[..]);
        let (mut of_hidden, mut t1, mut t2) =
            (&mut kept.hidden[..], &mut kept.t1[..], &mut kept.t2[..]);
        let blocks = (0..rows).step_by(size).map(|first| {
            let rows = size.min(rows - first);
            Block {
                first,
                y: take(&mut y, rows * outputs),
                stats: take(&mut stats, rows * per_stats),
                hidden: take(&mut of_hidden, rows * per_hidden),
                t1: take(&mut t1, rows * per_t1),
                t2: take(&mut t2, rows * per_t2),
            }
        });
        let blocks: Vec<_> = blocks.collect();
        let run = |scratch: &mut [Scratch<T>; 2], block: Block<'_, T>| {
            let [normed, activated] = scratch;
            let Block { first, y, .. } = block;
            let rows = y.len() / outputs;
            let x = &x[first * width..][..rows * width];
            let normed = match &self.norm {
                Some(norm) => {
                    let normed = normed.of(rows * width);
                    norm.forward(x, normed, block.stats);
                    normed
                }
                None => x,
            };
            let activated = activated.of(rows * hidden);
            if keep == Keep::Hidden {
                let hidden = block.hidden;
                self.fc1.forward(normed, hidden, block.t1, first, threads);
                activation::value_on::<F, T>(threads, hidden, activated);
            } else {
                self.fc1
                    .forward(normed, activated, block.t1, first, threads);
                activation::value_in_place::<F, T>(threads, activated);
            }
            self.fc2.forward(activated, y, block.t2, first, threads);
            let shortcut = shortcut.map(|rest| &rest[first * outputs..][..rows * outputs]);
            finish(y, self.gamma, shortcut, outputs);
        };
        if threads == Threads::All {
            let mut scratch = Default::default();
            blocks
                .into_iter()
                .for_each(|block| run(&mut scratch, block));
        } else {
            blocks.into_par_iter().for_each_init(Default::default, run);
        }
        kept
    }

    /// Writes the gradient of x to `on_x`, if there, and returns those of both updates, from the
    /// gradient of y.
    pub(crate) fn backward(
        &self,
        x: &[T],
        grad: &[T],
        kept: &Kept<T>,
        on_x: Option<&mut [T]>,
    ) -> Grads<T> {
        let (width, hidden, outputs) = (self.fc1.inputs, self.fc1.outputs, self.fc2.outputs);
        let rows = grad.len().checked_div(outputs).unwrap_or(0);
        let (size, threads) = self.blocks(rows);
        let wanted = on_x.is_some();
        let mut on_x = on_x.unwrap_or_default();
        let blocks = (0..rows).step_by(size).map(|first| {
            let count = if wanted { size.min(rows - first) } else { 0 };
            (first, take(&mut on_x, count * width))
        });
        let blocks: Vec<_> = blocks.collect();
        let run = |scratch: &mut [Scratch<T>; 5], (first, on_x): (usize, &mut [T])| {
            let [normed, scaled, activated, again, on_hidden] = scratch;
            let rows = size.min(rows - first);
            let part = |values, width| part(values, first, rows, width);
            let (x, grad) = (part(x, width), part(grad, outputs));
            let (t1, t2) = (
                part(&kept.t1, self.fc1.rank()),
                part(&kept.t2, self.fc2.rank()),
            );
            let stats = part(&kept.stats, 2);
            let mut grads = Grads {
                fc1: self.fc1.no_grads(),
                fc2: self.fc2.no_grads(),
            };
            // The gradients of A need the norm's result, and so do hidden values computed anew.
            let normed = match &self.norm {
                Some(norm) => {
                    let normed = normed.of(rows * width);
                    norm.again(x, normed);
                    &*normed
                }
                None => x,
            };
            let pre_activation = if kept.hidden.is_empty() {
                let again = again.of(rows * hidden);
                self.fc1.forward(normed, again, &mut [], first, threads);
                &*again
            } else {
                part(&kept.hidden, hidden)
            };
            let grad = match self.gamma {
                Some(gamma) => {
                    let scaled = scaled.of(rows * outputs);
                    scaled.copy_from_slice(grad);
                    finish(scaled, Some(gamma), None, outputs);
                    &*scaled
                }
                None => grad,
            };
            let activated = activated.of(rows * hidden);
            let on_hidden = on_hidden.of(rows * hidden);
            let u = self.fc2.grad_input(grad, Some(on_hidden), first, threads);
            // In one pass over the hidden values: their gradient, and the activation again for
            // fc2's A.
            activation::backward_on::<F, T>(threads, pre_activation, activated, on_hidden);
            if let Some(grads) = &mut grads.fc2 {
                let (x, t) = (&*activated, t2);
                self.fc2
                    .grad_update(grad, Seen { x, t, first }, &u, grads, threads);
            }
            let u = match &self.norm {
                _ if !wanted => self.fc1.grad_input(on_hidden, None, first, threads),
                None => self.fc1.grad_input(on_hidden, Some(on_x), first, threads),
                Some(norm) => {
                    let on_normed = scaled.of(rows * width);
                    let on_x_of_fc1 = Some(&mut *on_normed);
                    let u = self.fc1.grad_input(on_hidden, on_x_of_fc1, first, threads);
                    norm.backward(x, on_normed, stats, on_x);
                    u
                }
            };
            if let Some(grads) = &mut grads.fc1 {
                let (x, t) = (normed, t1);
                self.fc1
                    .grad_update(on_hidden, Seen { x, t, first }, &u, grads, threads);
            }
            grads
        };
        let parts: Vec<Grads<T>> = if threads == Threads::All {
            let mut scratch = Default::default();
            let parts = blocks.into_iter().map(|block| run(&mut scratch, block));
            parts.collect()
        } else {
            let parts = blocks.into_par_iter().map_init(Default::default, run);
            parts.collect()
        };
        // Added in the order of the rows, so that sums come out the same each time.
        let mut parts = parts.into_iter();
        let none = Grads {
            fc1: self.fc1.no_grads(),
            fc2: self.fc2.no_grads(),
        };
        let mut sum = parts.next().unwrap_or(none);
        for part in parts {
            for (sum, part) in [(&mut sum.fc1, &part.fc1), (&mut sum.fc2, &part.fc2)] {
                if let (Some(sum), Some(part)) = (sum, part) {
                    sum.add(part);
                }
            }
        }
        sum
    }
}

/// The gradients of both updates.
pub(crate) struct Grads<T> {
    pub(crate) fc1: Option<UpdateGrads<T>>,
    pub(crate) fc2: Option<UpdateGrads<T>>,
}

/// Some rows of all.
fn part<T>(values: &[T], first: usize, rows: usize, width: usize) -> &[T] {
    match values.is_empty() {
        true => values,
        false => &values[first * width..][..rows * width],
    }
}

impl<T: Element> Norm<'_, T> {
    fn forward(&self, x: &[T], y: &mut [T], stats: &mut [T]) {
        let (weight, bias) = (Some(self.weight), self.bias);
        let width = self.weight.len();
        norm::forward_rows(x, y, width, self.eps, self.remove_mean, weight, bias, stats);
    }

    /// Computes the result again.
    fn again(&self, x: &[T], y: &mut [T]) {
        let mut stats = buffer(2 * x.len() / self.weight.len().max(1));
        self.forward(x, y, &mut stats);
    }

    fn backward(&self, x: &[T], grad: &[T], stats: &[T], on_x: &mut [T]) {
        let width = self.weight.len();
        let weight = Some(self.weight);
        norm::backward_rows(x, grad, stats, weight, on_x, width, self.remove_mean);
    }
}

/// y = shortcut + gamma·y, row by row.
fn finish<T: Element>(y: &mut [T], gamma: Option<&[T]>, shortcut: Option<&[T]>, width: usize) {
    struct Finish<'a, T> {
        y: &'a mut [T],
        gamma: Option<&'a [T]>,
        shortcut: Option<&'a [T]>,
        width: usize,
    }

    impl<T: Element> WithSimd for Finish<'_, T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let lanes = T::lanes::<S>();
            let load = |values: &[T]| Vector::<T, S>::load(simd, values);
            for (row, y) in self.y.chunks_mut(self.width).enumerate() {
                let shortcut = self.shortcut.map(|all| &all[row * self.width..][..y.len()]);
                for (index, y) in y.chunks_mut(lanes).enumerate() {
                    let place = index * lanes..index * lanes + y.len();
                    let mut value = load(y);
                    if let Some(gamma) = self.gamma {
                        value = value * load(&gamma[place.clone()]);
                    }
                    if let Some(shortcut) = shortcut {
                        value = value + load(&shortcut[place]);
                    }
                    value.store(y);
                }
            }
        }
    }

    if width > 0 && (gamma.is_some() || shortcut.is_some()) {
        run(Finish {
            y,
            gamma,
            shortcut,
            width,
        });
    }
}

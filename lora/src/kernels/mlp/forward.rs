//! The forward pass of an MLP.

use super::{Kept, Mlp};
use crate::kernels::activation::{self, Function};
use crate::kernels::adapted::LinearKernel;
use crate::kernels::blocks::take;
use crate::kernels::buffer::{buffer, room};
use crate::kernels::gate;
use crate::kernels::matrix::Threads;
use crate::kernels::rows::{Keep, Shortcut, finish, part};
use crate::kernels::simd::Element;
use rayon::prelude::*;

/// The rows of a block, as parts of the results.
struct Block<'a, T> {
    first: usize,
    y: &'a mut [T],
    stats: &'a mut [T],
    /// Empty where hidden values are not kept.
    hidden: &'a mut [T],
    up: &'a mut [T],
    t: [&'a mut [T]; 3],
}

/// The memory that a block of rows works in, beside its arguments and results.
struct Scratch<T> {
    normed: Vec<T>,
    activated: Vec<T>,
    up: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self {
            normed: Vec::new(),
            activated: Vec::new(),
            up: Vec::new(),
        }
    }
}

impl<T: Element, F: Function> Mlp<'_, T, F> {
    /// Writes the result to `y`, and returns what the backward pass needs.
    pub(crate) fn forward(
        &self,
        x: &[T],
        shortcut: Option<&[T]>,
        y: &mut [T],
        keep: Keep,
    ) -> Kept<T> {
        let (hidden, outputs) = (self.fc1.outputs, self.fc2.outputs);
        let rows = y.len().checked_div(outputs).unwrap_or(0);
        let (size, threads) = self.blocks(rows);
        let of = |wanted: bool, count: usize| if wanted { count } else { 0 };
        let per_stats = of(self.norm.is_some(), 2);
        let per_hidden = of(keep == Keep::Inner, hidden);
        let per_up = of(self.up.is_some(), per_hidden);
        let per_t = self.ranks().map(|rank| of(keep != Keep::Nothing, rank));
        let mut kept = Kept {
            stats: buffer(rows * per_stats),
            hidden: buffer(rows * per_hidden),
            up: buffer(rows * per_up),
            t: per_t.map(|rank| buffer(rows * rank)),
        };
        let (mut y, mut stats) = (y, &mut kept.stats[..]);
        let (mut of_hidden, mut up) = (&mut kept.hidden[..], &mut kept.up[..]);
        let [t1, t_up, t2] = &mut kept.t;
        let mut t = [&mut t1[..], &mut t_up[..], &mut t2[..]];
        let blocks = (0..rows).step_by(size).map(|first| {
            let rows = size.min(rows - first);
            let [t1, t_up, t2] = &mut t;
            Block {
                first,
                y: take(&mut y, rows * outputs),
                stats: take(&mut stats, rows * per_stats),
                hidden: take(&mut of_hidden, rows * per_hidden),
                up: take(&mut up, rows * per_up),
                t: [
                    take(t1, rows * per_t[0]),
                    take(t_up, rows * per_t[1]),
                    take(t2, rows * per_t[2]),
                ],
            }
        });
        let blocks: Vec<_> = blocks.collect();
        let run = |scratch: &mut Scratch<T>, block: Block<'_, T>| {
            self.forward_block(x, shortcut, block, scratch, threads);
        };
        if threads == Threads::All {
            let mut scratch = Scratch::default();
            blocks
                .into_iter()
                .for_each(|block| run(&mut scratch, block));
        } else {
            blocks.into_par_iter().for_each_init(Scratch::default, run);
        }
        kept
    }

    fn forward_block(
        &self,
        x: &[T],
        shortcut: Option<&[T]>,
        block: Block<'_, T>,
        scratch: &mut Scratch<T>,
        threads: Threads,
    ) {
        let (width, outputs) = (self.fc1.inputs, self.fc2.outputs);
        let Block { first, y, .. } = block;
        let rows = y.len() / outputs;
        let x = &x[first * width..][..rows * width];
        let normed = match &self.norm {
            Some(norm) => {
                let normed = room(&mut scratch.normed, rows * width);
                norm.forward(x, normed, block.stats, threads);
                &*normed
            }
            None => x,
        };
        let [t1, t_up, t2] = block.t;
        let activated = room(&mut scratch.activated, rows * self.fc1.outputs);
        let layer = |layer: &LinearKernel<'_, T>, y: &mut [T], t| {
            layer.forward(normed, y, t, first, threads);
        };
        let kept = !block.hidden.is_empty();
        if let Some(up) = &self.up {
            let of_up = match kept {
                true => block.up,
                false => room(&mut scratch.up, activated.len()),
            };
            layer(up, of_up, t_up);
            if kept {
                layer(&self.fc1, block.hidden, t1);
                gate::gate_on::<F, T>(threads, block.hidden, of_up, activated);
            } else {
                layer(&self.fc1, activated, t1);
                gate::gate_in_place::<F, T>(threads, activated, of_up);
            }
        } else if kept {
            layer(&self.fc1, block.hidden, t1);
            activation::value_on::<F, T>(threads, block.hidden, activated);
        } else {
            layer(&self.fc1, activated, t1);
            activation::value_in_place::<F, T>(threads, activated);
        }
        self.fc2.forward(activated, y, t2, first, threads);
        if let Some(dropout) = &self.dropout {
            dropout.in_place(y, first * outputs);
        }
        let shortcut = match self.shortcut {
            Some(Shortcut::Input) => Some(x),
            Some(Shortcut::Normed) => Some(normed),
            None => shortcut.map(|all| part(all, first, rows, outputs)),
        };
        finish(y, self.gamma, shortcut, outputs, threads);
    }
}

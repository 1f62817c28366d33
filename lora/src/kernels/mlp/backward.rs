//! The backward pass of an MLP.

use super::{Grads, Kept, Mlp};
use crate::kernels::activation::{self, Function};
use crate::kernels::adapted::{LinearKernel, Seen, sum_of_parts};
use crate::kernels::blocks::take;
use crate::kernels::buffer::room;
use crate::kernels::gate;
use crate::kernels::matrix::Threads;
use crate::kernels::rows::{self, OnInput};
use crate::kernels::simd::Element;
use rayon::prelude::*;

/// The arguments of the backward pass, of all rows.
struct Args<'a, T> {
    x: &'a [T],
    grad: &'a [T],
    kept: &'a Kept<T>,
    threads: Threads,
}

/// The memory that a block of rows works in.
struct Scratch<T> {
    normed: Vec<T>,
    on_normed: Vec<T>,
    scaled: Vec<T>,
    /// The hidden values, computed anew.
    again: Vec<T>,
    up_again: Vec<T>,
    activated: Vec<T>,
    on_hidden: Vec<T>,
    on_up: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        let [
            normed,
            on_normed,
            scaled,
            again,
            up_again,
            activated,
            on_hidden,
            on_up,
        ] = [(); 8].map(|()| Vec::new());
        Self {
            normed,
            on_normed,
            scaled,
            again,
            up_again,
            activated,
            on_hidden,
            on_up,
        }
    }
}

impl<T: Element, F: Function> Mlp<'_, T, F> {
    /// Writes the gradient of x to `on_x`, if there, and returns those of all updates, from the
    /// gradient of y.
    pub(crate) fn backward(
        &self,
        x: &[T],
        grad: &[T],
        kept: &Kept<T>,
        on_x: Option<&mut [T]>,
    ) -> Grads<T> {
        let (width, outputs) = (self.fc1.inputs, self.fc2.outputs);
        let rows = grad.len().checked_div(outputs).unwrap_or(0);
        let (size, threads) = self.blocks(rows);
        let args = Args {
            x,
            grad,
            kept,
            threads,
        };
        let wanted = on_x.is_some();
        let mut on_x = on_x.unwrap_or_default();
        let blocks = (0..rows).step_by(size).map(|first| {
            let rows = size.min(rows - first);
            let count = if wanted { rows * width } else { 0 };
            let on_x = take(&mut on_x, count);
            (first, rows, wanted.then_some(on_x))
        });
        let blocks: Vec<_> = blocks.collect();
        let run = |scratch: &mut Scratch<T>, (first, rows, on_x)| {
            self.backward_block(&args, (first, rows), on_x, scratch)
        };
        let parts: Vec<Grads<T>> = if threads == Threads::All {
            let mut scratch = Scratch::default();
            let parts = blocks.into_iter().map(|block| run(&mut scratch, block));
            parts.collect()
        } else {
            let parts = blocks.into_par_iter().map_init(Scratch::default, run);
            parts.collect()
        };
        sum_of_parts(parts, || self.no_grads())
    }

    fn backward_block(
        &self,
        args: &Args<'_, T>,
        (first, rows): (usize, usize),
        on_x: Option<&mut [T]>,
        scratch: &mut Scratch<T>,
    ) -> Grads<T> {
        let (width, hidden, outputs) = (self.fc1.inputs, self.fc1.outputs, self.fc2.outputs);
        let Args { kept, threads, .. } = *args;
        let part = |values, width| rows::part(values, first, rows, width);
        let (x, on_y) = (part(args.x, width), part(args.grad, outputs));
        let ranks = self.ranks();
        let t = |layer: usize| part(&kept.t[layer], ranks[layer]);
        // The gradients of A need the norm's result, and so do hidden values computed anew.
        let normed = match &self.norm {
            Some(norm) => {
                let normed = room(&mut scratch.normed, rows * width);
                norm.again(x, normed, threads);
                &*normed
            }
            None => x,
        };
        let between = (self.gamma, self.dropout.as_ref());
        let place = (first, outputs);
        let grad = rows::behind_layers(on_y, between, place, &mut scratch.scaled, threads);
        let count = rows * hidden;
        let again = |layer, kept, scratch| {
            let kept = part(kept, hidden);
            layer_again(layer, normed, kept, scratch, (first, rows), threads)
        };
        let pre_activation = again(&self.fc1, &kept.hidden, &mut scratch.again);
        let activated = room(&mut scratch.activated, count);
        let on_hidden = room(&mut scratch.on_hidden, count);
        let (on_up, up_again) = (&mut scratch.on_up, &mut scratch.up_again);
        let u = self
            .fc2
            .grad_input(grad, Some(on_hidden), false, first, threads);
        // In one pass over the hidden values: their gradients, and fc2's input again for its A.
        let up = self.up.as_ref().map(|up| {
            let of_up = again(up, &kept.up, up_again);
            let on_up = room(on_up, count);
            let x = pre_activation;
            gate::backward_on::<F, T>(threads, x, of_up, activated, on_up, on_hidden);
            (up, &*on_up)
        });
        if up.is_none() {
            activation::backward_on::<F, T>(threads, pre_activation, activated, on_hidden);
        }
        let mut grads = self.no_grads();
        let [on_fc1, on_up, on_fc2] = &mut grads;
        let add = |layer: &LinearKernel<'_, T>, grad: &[T], x, t, u: &[T], sum: &mut Option<_>| {
            if let Some(sum) = sum {
                layer.grad_update(grad, Seen { x, t, first }, u, sum, threads);
            }
        };
        add(&self.fc2, grad, activated, t(2), &u, on_fc2);

        let mut on_input = OnInput::new(on_x, self.norm.as_ref(), &mut scratch.on_normed);
        let u = (self.fc1).grad_input(on_hidden, on_input.of_layers(), false, first, threads);
        add(&self.fc1, on_hidden, normed, t(0), &u, on_fc1);
        if let Some((up, grad)) = up {
            let u = up.grad_input(grad, on_input.of_layers(), true, first, threads);
            add(up, grad, normed, t(1), &u, on_up);
        }
        on_input.finish(self.shortcut, x, part(&kept.stats, 2), on_y, threads);
        grads
    }
}

/// The layer's result for rows of which the first has this number: as it was kept, or computed anew.
fn layer_again<'a, T: Element>(
    layer: &LinearKernel<'_, T>,
    x: &[T],
    kept: &'a [T],
    scratch: &'a mut Vec<T>,
    (first, rows): (usize, usize),
    threads: Threads,
) -> &'a [T] {
    if !kept.is_empty() {
        return kept;
    }
    let again = room(scratch, rows * layer.outputs);
    layer.forward(x, again, &mut [], first, threads);
    again
}

//! The backward pass.

use super::{Grads, Group, Kept, Scratch, SelfAttention};
use crate::kernels::adapted::{Seen, sum_of_parts};
use crate::kernels::attention::{self, Given, Gradients, RowOrder, Sizes};
use crate::kernels::blocks::take;
use crate::kernels::buffer::room;
use crate::kernels::matrix::Threads;
use crate::kernels::rows::{OnInput, behind_layers, part};
use crate::kernels::simd::Element;
use rayon::prelude::*;

impl<T: Element> SelfAttention<'_, T> {
    /// Writes the gradient of x to `on_x`, if there, and returns those of all updates, from the
    /// gradient of y.
    pub(crate) fn backward(
        &self,
        x: &[T],
        grad: &[T],
        kept: &Kept<T>,
        on_x: Option<&mut [T]>,
    ) -> Grads<T> {
        let wanted = on_x.is_some();
        let mut on_x = on_x.unwrap_or_default();
        let per_group = self.core.sizes.queries * self.inputs[0].inputs;
        let groups = self.groups().into_iter().map(|group| {
            let count = if wanted { group.count * per_group } else { 0 };
            (group, wanted.then_some(take(&mut on_x, count)))
        });
        let groups: Vec<_> = groups.collect();
        let run = |scratch: &mut Scratch<T>, (group, on_x)| {
            self.backward_group((x, grad, kept), group, on_x, scratch)
        };
        let parts: Vec<Grads<T>> = match &groups[..] {
            [(group, _), ..] if group.threads == Threads::One => {
                let parts = groups.into_par_iter().map_init(Scratch::new, run);
                parts.collect()
            }
            _ => {
                let mut scratch = Scratch::new();
                let groups = groups.into_iter();
                groups.map(|group| run(&mut scratch, group)).collect()
            }
        };
        sum_of_parts(parts, || self.no_grads())
    }

    fn backward_group(
        &self,
        (x, grad, kept): (&[T], &[T], &Kept<T>),
        group: Group,
        on_x: Option<&mut [T]>,
        scratch: &mut Scratch<T>,
    ) -> Grads<T> {
        let Sizes { queries, heads, .. } = self.core.sizes;
        let [width, outputs] = [self.inputs[0].inputs, self.output.outputs];
        let (first, rows) = (group.first * queries, group.count * queries);
        let threads = group.threads;
        let (x, on_y) = (
            part(x, first, rows, width),
            part(grad, first, rows, outputs),
        );
        let between = (self.gamma, self.dropout.as_ref());
        let place = (first, outputs);
        let grad = behind_layers(on_y, between, place, &mut scratch.scaled, threads);
        let stats = room(&mut scratch.stats, 2 * rows);
        let normed = match &self.norm {
            Some(norm) => {
                let normed = room(&mut scratch.normed, rows * width);
                norm.forward(x, normed, stats, threads);
                &*normed
            }
            None => x,
        };
        let [of_q, of_k, of_v] = &mut scratch.inputs;
        let made = [
            self.make_again(0, normed, group, &kept.inputs[0], of_q),
            self.make_again(1, normed, group, &kept.inputs[1], of_k),
            self.make_again(2, normed, group, &kept.inputs[2], of_v),
        ];
        let core = self.core(group, made.each_ref().map(|made| made.heads));
        let output = part(&kept.output, first, rows, self.output.inputs);
        let output = match self.needs_output() {
            true if output.is_empty() => {
                let output = room(&mut scratch.output, rows * self.output.inputs);
                let log_sums = room(&mut scratch.log_sums, rows * heads);
                attention::forward_into(&core, output, log_sums);
                Some(&*output)
            }
            true => Some(output),
            false => None,
        };
        let layers = self.layers();
        let mut grads = self.no_grads();
        let mut add = |index: usize, grad: &[T], x, u: &[T]| {
            if let Some(sum) = &mut grads[index] {
                let t = part(&kept.t[index], first, rows, layers[index].rank());
                layers[index].grad_update(grad, Seen { x, t, first }, u, sum, threads);
            }
        };
        let on_output = room(&mut scratch.on_output, rows * self.output.inputs);
        let u = (self.output).grad_input(grad, Some(on_output), false, first, threads);
        add(3, grad, output.unwrap_or_default(), &u);
        let wanted = |index: usize| {
            let wanted = on_x.is_some() || self.inputs[index].rank() > 0;
            wanted.then_some(RowOrder::RowsFirst)
        };
        let given = Given {
            output,
            grad: on_output,
            log_sums: part(&kept.log_sums, first, rows, heads),
        };
        let wanted = Gradients {
            q: wanted(0),
            k: wanted(1),
            v: wanted(2),
        };
        let Gradients { q, k, v } = attention::backward(&core, given, &wanted);

        let mut on_input = OnInput::new(on_x, self.norm.as_ref(), &mut scratch.on_normed);
        for (index, grad) in [q, k, v].into_iter().enumerate() {
            let Some(mut grad) = grad else {
                continue;
            };
            self.turn(index, &mut grad, group, true);
            let grad = match self.head_norm(index) {
                Some(norm) => {
                    let on_projected = room(&mut scratch.on_projected, grad.len());
                    let made = &made[index];
                    norm.backward(made.projected, &grad, made.stats, on_projected, threads);
                    &*on_projected
                }
                None => &grad,
            };
            let layer = &self.inputs[index];
            let u = layer.grad_input(grad, on_input.of_layers(), index > 0, first, threads);
            add(index, grad, normed, &u);
        }
        on_input.finish(self.shortcut, x, stats, on_y, threads);
        grads
    }
}

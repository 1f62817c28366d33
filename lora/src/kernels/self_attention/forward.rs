//! The forward pass.

use super::{Group, Kept, Scratch, SelfAttention};
use crate::kernels::attention::{self, Sizes};
use crate::kernels::blocks::take;
use crate::kernels::buffer::{buffer, room};
use crate::kernels::matrix::Threads;
use crate::kernels::rows::{Keep, Shortcut, finish, part};
use crate::kernels::simd::Element;
use rayon::prelude::*;

/// A group's parts of the results, empty where they are not kept.
struct Results<'a, T> {
    y: &'a mut [T],
    inputs: [&'a mut [T]; 3],
    output: &'a mut [T],
    log_sums: &'a mut [T],
    t: [&'a mut [T]; 4],
}

impl<T: Element> SelfAttention<'_, T> {
    /// Writes the result to `y`, and returns what the backward pass needs.
    pub(crate) fn forward(
        &self,
        x: &[T],
        shortcut: Option<&[T]>,
        y: &mut [T],
        keep: Keep,
    ) -> Kept<T> {
        let Sizes {
            batch,
            heads,
            queries,
            ..
        } = self.core.sizes;
        let of = |wanted: bool, count: usize| if wanted { count } else { 0 };
        let layers = self.layers();
        let [q, k, v, _] = layers.map(|layer| of(keep == Keep::Inner, layer.outputs));
        let per_input = [q, k, v];
        let keeps_output = keep == Keep::Inner && self.needs_output();
        let per_output = of(keeps_output, self.output.inputs);
        let per_sum = of(keep != Keep::Nothing, heads);
        let per_t = layers.map(|layer| of(keep != Keep::Nothing, layer.rank()));
        let all = |per_row: usize| buffer(batch * queries * per_row);
        let mut kept = Kept {
            inputs: per_input.map(all),
            output: all(per_output),
            log_sums: all(per_sum),
            t: per_t.map(all),
        };
        let mut y = y;
        let mut inputs = kept.inputs.each_mut().map(|values| &mut values[..]);
        let mut output = &mut kept.output[..];
        let mut log_sums = &mut kept.log_sums[..];
        let mut t = kept.t.each_mut().map(|values| &mut values[..]);
        let groups = self.groups().into_iter().map(|group| {
            let rows = group.count * queries;
            let results = Results {
                y: take(&mut y, rows * self.output.outputs),
                inputs: [0, 1, 2].map(|i| take(&mut inputs[i], rows * per_input[i])),
                output: take(&mut output, rows * per_output),
                log_sums: take(&mut log_sums, rows * per_sum),
                t: [0, 1, 2, 3].map(|i| take(&mut t[i], rows * per_t[i])),
            };
            (group, results)
        });
        let groups: Vec<_> = groups.collect();
        let run = |scratch: &mut Scratch<T>, (group, results)| {
            self.forward_group(x, shortcut, group, results, scratch);
        };
        match &groups[..] {
            [(group, _), ..] if group.threads == Threads::One => {
                groups.into_par_iter().for_each_init(Scratch::new, run);
            }
            _ => {
                let mut scratch = Scratch::new();
                let groups = groups.into_iter();
                groups.for_each(|group| run(&mut scratch, group));
            }
        }
        kept
    }

    fn forward_group(
        &self,
        x: &[T],
        shortcut: Option<&[T]>,
        group: Group,
        results: Results<'_, T>,
        scratch: &mut Scratch<T>,
    ) {
        let Sizes { queries, heads, .. } = self.core.sizes;
        let [width, outputs] = [self.inputs[0].inputs, self.output.outputs];
        let (first, rows) = (group.first * queries, group.count * queries);
        let threads = group.threads;
        let x = part(x, first, rows, width);
        let normed = match &self.norm {
            Some(norm) => {
                let normed = room(&mut scratch.normed, rows * width);
                norm.forward(x, normed, room(&mut scratch.stats, 2 * rows), threads);
                &*normed
            }
            None => x,
        };
        let [t_q, t_k, t_v, t_output] = results.t;
        let [q, k, v] = results.inputs;
        let [of_q, of_k, of_v] = &mut scratch.inputs;
        let q = self.make(0, normed, group, q, of_q, t_q).heads;
        let k = self.make(1, normed, group, k, of_k, t_k).heads;
        let v = self.make(2, normed, group, v, of_v, t_v).heads;
        let output = match results.output.is_empty() {
            true => room(&mut scratch.output, rows * self.output.inputs),
            false => results.output,
        };
        let log_sums = match results.log_sums.is_empty() {
            true => room(&mut scratch.log_sums, rows * heads),
            false => results.log_sums,
        };
        attention::forward_into(&self.core(group, [q, k, v]), output, log_sums);
        let y = results.y;
        self.output.forward(output, y, t_output, first, threads);
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

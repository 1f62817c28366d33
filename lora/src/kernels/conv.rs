//! Convolutions as matrix products.
//!
//! Maps are (height, width, channels), weights (out, kernel height, kernel width, in / groups). The
//! result is computed in blocks of rows. The numbers that a pixel of the result sees become one row
//! of a matrix, the pixel's *patch*; the weights are a matrix with the same columns.

use super::buffer::{buffer, room};
use super::matrix::{Matrix, Threads, multiply};
use super::simd::Element;
use super::window::Window;
use rayon::prelude::*;

/// Bytes of patches that stay in a core's cache between gathering and multiplying.
const CACHE: usize = 1 << 20;

/// The fewest patches of a product, where there are as many: fewer do not pay for reading the
/// weights.
const PATCHES: usize = 256;

/// Multiplications that are worth a thread.
const WORK: usize = 1 << 20;

/// A convolution of batches of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conv {
    pub(crate) window: Window,
    /// Channels of the input.
    pub(crate) inputs: usize,
    /// Channels of the result.
    pub(crate) outputs: usize,
    pub(crate) groups: usize,
}

impl Conv {
    /// y = x * w + bias
    pub(crate) fn forward<T: Element>(&self, x: &[T], w: &[T], bias: Option<&[T]>, y: &mut [T]) {
        if !self.narrows() {
            return self.forward_by_input(x, w, bias, y);
        }
        self.reversed().grad_input_by_input(x, &self.turned(w), y);
        if let Some(bias) = bias {
            for y in y.chunks_exact_mut(self.outputs) {
                y.iter_mut().zip(bias).for_each(|(y, &bias)| *y += bias);
            }
        }
    }

    /// The gradient of the input from that of the result.
    pub(crate) fn grad_input<T: Element>(&self, grad: &[T], w: &[T], x: &mut [T]) {
        if !self.narrows() {
            return self.grad_input_by_input(grad, w, x);
        }
        let reversed = self.reversed();
        reversed.forward_by_input(grad, &self.turned(w), None, x);
    }

    /// The gradient of the weights.
    pub(crate) fn grad_weight<T: Element>(&self, grad: &[T], x: &[T], w: &mut [T]) {
        if !self.narrows() {
            return self.grad_weight_by_input(grad, x, w);
        }
        let (reversed, mut turned) = (self.reversed(), buffer(w.len()));
        reversed.grad_weight_by_input(x, grad, &mut turned);
        w.copy_from_slice(&reversed.turned(&turned));
    }

    /// True if patches of the result are far smaller than those of the input, as for a matrix of
    /// low rank. Then the reversed convolution computes everything, with less to gather.
    fn narrows(&self) -> bool {
        self.window.stride == 1 && self.window.taps() > 1 && 2 * self.outputs <= self.inputs
    }

    /// The convolution from results to inputs, whose gradient of the input is this one's result.
    fn reversed(&self) -> Self {
        Self {
            window: self.window.reversed(),
            inputs: self.outputs,
            outputs: self.inputs,
            groups: self.groups,
        }
    }

    /// The weights of the reversed convolution.
    fn turned<T: Element>(&self, w: &[T]) -> Vec<T> {
        let (inputs, outputs) = (self.inputs / self.groups, self.outputs / self.groups);
        let taps = self.window.taps();
        let mut turned = buffer(w.len());
        for (row, w) in w.chunks_exact(self.patch().max(1)).enumerate() {
            let (group, output) = (row / outputs, row % outputs);
            for (tap, w) in w.chunks_exact(inputs).enumerate() {
                let tap = taps - 1 - tap;
                for (input, &w) in w.iter().enumerate() {
                    let row = group * inputs + input;
                    turned[(row * taps + tap) * outputs + output] = w;
                }
            }
        }
        turned
    }

    fn forward_by_input<T: Element>(&self, x: &[T], w: &[T], bias: Option<&[T]>, y: &mut [T]) {
        let row = self.window.output.1 * self.outputs;
        if y.is_empty() {
            return;
        }
        let rows = self.split::<T>(y.len() / row, self.window.output.1);
        each_chunk(y, rows * row, |block, y, memory, threads| {
            let patches = room(memory, y.len() / self.outputs * self.patch());
            for group in 0..self.groups {
                self.gather(x, group, block * rows, patches, threads);
                self.apply_group(patches, w, bias, group, y, threads);
            }
        });
    }

    fn grad_input_by_input<T: Element>(&self, grad: &[T], w: &[T], x: &mut [T]) {
        let Window { output, .. } = self.window;
        let (map, row) = (self.window.pixels() * self.inputs, output.1 * self.outputs);
        if x.is_empty() {
            return;
        }
        // Whole images for each thread: the windows of neighbouring rows overlap in `x`.
        let images = self.split::<T>(x.len() / map, self.window.places());
        each_chunk(x, images * map, |chunk, x, memory, threads| {
            let first = chunk * images * output.0;
            let total = x.len() / map * output.0;
            let rows = self.block::<T>(output.1);
            if !self.is_partition() {
                x.fill(T::ZERO);
            }
            for start in (0..total).step_by(rows) {
                let rows = rows.min(total - start);
                let grad = &grad[(first + start) * row..][..rows * row];
                let patches = room(memory, rows * output.1 * self.patch());
                for group in 0..self.groups {
                    let w = self.weights(w, group);
                    let grad = self.channels(grad, group);
                    multiply(patches, grad, w, T::ONE, false, threads);
                    self.scatter(patches, group, start, x);
                }
            }
        });
    }

    fn grad_weight_by_input<T: Element>(&self, grad: &[T], x: &[T], w: &mut [T]) {
        let row = self.window.output.1 * self.outputs;
        w.fill(T::ZERO);
        if grad.is_empty() || w.is_empty() {
            return;
        }
        let rows = self.block::<T>(self.window.output.1);
        // One block after the other, each on all threads: all blocks add to the same weights.
        let mut memory = Vec::new();
        for (block, grad) in grad.chunks(rows * row).enumerate() {
            let places = grad.len() / self.outputs;
            let patches = room(&mut memory, places * self.patch());
            let size = w.len() / self.groups;
            for (group, w) in w.chunks_exact_mut(size).enumerate() {
                self.gather(x, group, block * rows, patches, Threads::All);
                let grad = self.channels(grad, group);
                let patches = Matrix::new(patches, places, self.patch());
                multiply(w, grad.t(), patches, T::ONE, true, Threads::All);
            }
        }
    }

    /// Numbers of a group's patch.
    fn patch(&self) -> usize {
        self.window.taps() * (self.inputs / self.groups)
    }

    /// How many items make a block, where each item has this many results.
    fn block<T>(&self, results: usize) -> usize {
        let patches = size_of::<T>() * self.patch() * results;
        (CACHE / patches.max(1)).max(PATCHES.div_ceil(results))
    }

    /// How many of `total` items make a block, where each item has this many results. If there is
    /// work for all threads, every thread gets a block.
    fn split<T>(&self, total: usize, results: usize) -> usize {
        let work = total * results * self.patch() * (self.outputs / self.groups);
        match work < WORK {
            true => total,
            false => {
                let share = total.div_ceil(rayon::current_num_threads());
                self.block::<T>(results).min(share)
            }
        }
        .max(1)
    }

    /// The weights of a group, (out, patch).
    fn weights<'a, T: Element>(&self, w: &'a [T], group: usize) -> Matrix<'a, T> {
        let outputs = self.outputs / self.groups;
        let size = outputs * self.patch();
        Matrix::new(&w[group * size..][..size], outputs, self.patch())
    }

    /// A group's channels of rows of results, (pixels, out).
    fn channels<'a, T: Element>(&self, y: &'a [T], group: usize) -> Matrix<'a, T> {
        let outputs = self.outputs / self.groups;
        let shape = (y.len() / self.outputs, outputs);
        Matrix::with_steps(&y[group * outputs..], shape, (self.outputs, 1))
    }

    fn apply_group<T: Element>(
        &self,
        patches: &[T],
        w: &[T],
        bias: Option<&[T]>,
        group: usize,
        y: &mut [T],
        threads: Threads,
    ) {
        let places = y.len() / self.outputs;
        let patches = Matrix::new(patches, places, self.patch());
        let w = self.weights(w, group).t();
        if self.groups == 1 {
            if let Some(bias) = bias {
                for y in y.chunks_exact_mut(self.outputs) {
                    y.copy_from_slice(bias);
                }
            }
            return multiply(y, patches, w, T::ONE, bias.is_some(), threads);
        }
        let outputs = self.outputs / self.groups;
        let mut product = buffer(places * outputs);
        multiply(&mut product, patches, w, T::ONE, false, threads);
        let channels = group * outputs..(group + 1) * outputs;
        let pixels = y.chunks_exact_mut(self.outputs);
        for (y, product) in pixels.zip(product.chunks_exact(outputs)) {
            let y = &mut y[channels.clone()];
            y.copy_from_slice(product);
            if let Some(bias) = bias {
                for (y, &bias) in y.iter_mut().zip(&bias[channels.clone()]) {
                    *y += bias;
                }
            }
        }
    }

    /// Fills `patches` with the patches of a group, for the rows of the batch's results from
    /// `first` on.
    fn gather<T: Element>(
        &self,
        x: &[T],
        group: usize,
        first: usize,
        patches: &mut [T],
        threads: Threads,
    ) {
        if patches.is_empty() {
            return;
        }
        let row = self.window.output.1 * self.patch();
        let gather =
            |(index, row): (usize, &mut [T])| self.gather_row(x, group, first + index, row);
        match threads {
            Threads::All if patches.len() >= WORK / 4 => {
                patches.par_chunks_mut(row).enumerate().for_each(gather);
            }
            _ => patches.chunks_mut(row).enumerate().for_each(gather),
        }
    }

    fn gather_row<T: Element>(&self, x: &[T], group: usize, row: usize, patches: &mut [T]) {
        self.each_run(group, row, |patch, x_range| match x_range {
            Some(start) => patches[patch.clone()].copy_from_slice(&x[start..][..patch.len()]),
            None => patches[patch].fill(T::ZERO),
        });
    }

    /// Adds the patches of a group, for the rows of results from `first` on, to the pixels that
    /// they were gathered from.
    fn scatter<T: Element>(&self, patches: &[T], group: usize, first: usize, x: &mut [T]) {
        if patches.is_empty() {
            return;
        }
        let apart = self.is_apart();
        let rows = patches.chunks_exact(self.window.output.1 * self.patch());
        for (index, patches) in rows.enumerate() {
            self.each_run(group, first + index, |patch, start| {
                let Some(start) = start else { return };
                let patch = &patches[patch];
                let x = &mut x[start..][..patch.len()];
                match apart {
                    true => x.copy_from_slice(patch),
                    false => x.iter_mut().zip(patch).for_each(|(x, &patch)| *x += patch),
                }
            });
        }
    }

    /// True if no two windows overlap.
    fn is_apart(&self) -> bool {
        let Window { kernel, stride, .. } = self.window;
        self.window.dilation == 1 && stride >= kernel.0.max(kernel.1)
    }

    /// True if the windows cover the input, each pixel once.
    fn is_partition(&self) -> bool {
        let Window {
            input,
            kernel,
            output,
            stride,
            padding,
            ..
        } = self.window;
        let covered = (output.0 * stride, output.1 * stride);
        self.is_apart() && kernel == (stride, stride) && padding == (0, 0) && covered == input
    }

    /// Calls `f` with each run of numbers in a row's patches, and with the run's place in the
    /// batch's input, or none in the padding.
    #[inline(always)]
    fn each_run(
        &self,
        group: usize,
        row: usize,
        mut f: impl FnMut(std::ops::Range<usize>, Option<usize>),
    ) {
        let window = &self.window;
        let (image, row) = (row / window.output.0, row % window.output.0);
        let channels = self.inputs / self.groups;
        let image = image * window.pixels() * self.inputs + group * channels;
        let line = window.kernel.1 * channels;
        let joined = window.dilation == 1 && self.groups == 1;
        for place in 0..window.output.1 {
            let (taps, column) = window.columns(place);
            for tap in 0..window.kernel.0 {
                let patch = place * self.patch() + tap * line;
                let Some(row) = window.row(row, tap).filter(|_| !taps.is_empty()) else {
                    f(patch..patch + line, None);
                    continue;
                };
                let start = image + (row * window.input.1 + column) * self.inputs;
                let (first, end) = (patch + taps.start * channels, patch + taps.end * channels);
                if first > patch {
                    f(patch..first, None);
                }
                if joined {
                    f(first..end, Some(start));
                } else {
                    for tap in 0..taps.len() {
                        let at = first + tap * channels;
                        let start = start + tap * window.dilation * self.inputs;
                        f(at..at + channels, Some(start));
                    }
                }
                if end < patch + line {
                    f(end..patch + line, None);
                }
            }
        }
    }
}

/// Calls `f` with each chunk and memory to use. Each chunk runs on one thread; a single chunk may
/// use all threads.
pub(crate) fn each_chunk<T: Element>(
    values: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T], &mut Vec<T>, Threads) + Sync,
) {
    if values.len() <= size {
        return f(0, values, &mut Vec::new(), Threads::All);
    }
    let chunks = values.par_chunks_mut(size).enumerate();
    chunks.for_each_init(Vec::new, |memory, (index, chunk)| {
        f(index, chunk, memory, Threads::One);
    });
}

//! Convolutions as matrix products.
//!
//! Maps are (height, width, channels), weights (out, kernel height, kernel width, in / groups). For
//! a block of rows of the result, what each pixel sees is gathered to a row of a matrix, its
//! *patch*; the weights are a matrix with the same columns.

use super::buffer::buffer;
use super::matrix::{Matrix, Threads, multiply};
use super::simd::Element;
use super::window::Window;
use rayon::prelude::*;

/// Bytes of patches that stay in a core's cache between gathering and multiplying.
const CACHE: usize = 1 << 20;

/// Patches that a product takes at least, where there are as many: fewer do not pay for reading the
/// weights.
const PATCHES: usize = 256;

/// Products that are worth a thread.
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
        let row = self.window.output.1 * self.outputs;
        if y.is_empty() {
            return;
        }
        let rows = self.split::<T>(y.len() / row, self.window.output.1);
        each_chunk(y, rows * row, |block, y, threads| {
            let mut patches = buffer(y.len() / self.outputs * self.patch());
            for group in 0..self.groups {
                self.gather(x, group, block * rows, &mut patches, threads);
                self.apply_group(&patches, w, bias, group, y, threads);
            }
        });
    }

    /// The gradient of the input from that of the result.
    pub(crate) fn grad_input<T: Element>(&self, grad: &[T], w: &[T], x: &mut [T]) {
        let Window { output, .. } = self.window;
        let (map, row) = (self.window.pixels() * self.inputs, output.1 * self.outputs);
        if x.is_empty() {
            return;
        }
        let images = self.split::<T>(x.len() / map, self.window.places());
        each_chunk(x, images * map, |chunk, x, threads| {
            let first = chunk * images * output.0;
            let total = x.len() / map * output.0;
            let rows = self.block::<T>(output.1);
            if !self.is_partition() {
                x.fill(T::ZERO);
            }
            for start in (0..total).step_by(rows) {
                let rows = rows.min(total - start);
                let grad = &grad[(first + start) * row..][..rows * row];
                let mut patches = buffer(rows * output.1 * self.patch());
                for group in 0..self.groups {
                    let w = self.weights(w, group);
                    let grad = self.channels(grad, group);
                    multiply(&mut patches, grad, w, T::ONE, false, threads);
                    self.scatter(&patches, group, start, x);
                }
            }
        });
    }

    /// The gradient of the weights.
    pub(crate) fn grad_weight<T: Element>(&self, grad: &[T], x: &[T], w: &mut [T]) {
        let row = self.window.output.1 * self.outputs;
        w.fill(T::ZERO);
        if grad.is_empty() || w.is_empty() {
            return;
        }
        let rows = self.block::<T>(self.window.output.1);
        let mut patches = Vec::new();
        for (block, grad) in grad.chunks(rows * row).enumerate() {
            let places = grad.len() / self.outputs;
            if patches.is_empty() {
                patches = buffer(places * self.patch());
            }
            let patches = &mut patches[..places * self.patch()];
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

    /// How many items of this many results make a block.
    fn block<T>(&self, results: usize) -> usize {
        let patches = size_of::<T>() * self.patch() * results;
        (CACHE / patches.max(1)).max(PATCHES.div_ceil(results))
    }

    /// How many of `total` items of this many results make a block, such that no thread goes
    /// without if there is work for all.
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

    /// Fills `patches` with those of a group, from the batch's row of results `first` on.
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

    /// Adds patches of a group, from row `first` of the results on, to where they were seen.
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

    /// True if no two windows meet.
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

    /// Calls `f` with the runs of numbers of a row's patches and where in the batch's input each
    /// lies; none in the padding.
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

/// Calls `f` with each chunk, each on one thread, or with all threads if there is but one.
pub(crate) fn each_chunk<T: Element>(
    values: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T], Threads) + Sync,
) {
    if values.len() <= size {
        return f(0, values, Threads::All);
    }
    let chunks = values.par_chunks_mut(size).enumerate();
    chunks.for_each(|(index, chunk)| f(index, chunk, Threads::One));
}

/// The sums of the columns of a matrix, on all threads.
pub(crate) fn column_sums<T: Element>(x: &[T], columns: usize) -> Vec<T> {
    let mut sums = vec![T::ZERO; columns];
    if x.is_empty() {
        return sums;
    }
    // Parts of a fixed size: the order of summation must not depend on the threads.
    let part = (WORK / 4).next_multiple_of(columns);
    let partial = |x: &[T]| {
        let mut sums = vec![T::ZERO; columns];
        for row in x.chunks_exact(columns) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
        }
        sums
    };
    let parts: Vec<_> = match x.len() <= part {
        true => vec![partial(x)],
        false => x.par_chunks(part).map(partial).collect(),
    };
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    sums
}

/// The matrices of (rows, columns) in `x`, each transposed, on all threads.
pub(crate) fn transpose<T: Element>(x: &[T], y: &mut [T], rows: usize, columns: usize) {
    if y.is_empty() {
        return;
    }
    let (x, y) = (x.chunks(rows * columns), y.chunks_mut(rows * columns));
    if rows == 1 || columns == 1 {
        return x.zip(y).for_each(|(x, y)| y.copy_from_slice(x));
    }
    let pairs: Vec<_> = x.zip(y).collect();
    let block = (WORK / 4 / rows).next_multiple_of(16);
    let transpose = |(x, y): (&[T], &mut [T])| {
        // Blocks of the result's rows.
        let blocks = y.par_chunks_mut(block * rows).enumerate();
        blocks.for_each(|(index, y)| transpose_block(x, y, index * block, rows, columns));
    };
    match pairs.len() * rows * columns < WORK / 4 {
        true => pairs
            .into_iter()
            .for_each(|(x, y)| transpose_block(x, y, 0, rows, columns)),
        false => pairs.into_par_iter().for_each(transpose),
    }
}

/// The columns from `first` on as the rows of `y`.
pub(crate) fn transpose_block<T: Element>(
    x: &[T],
    y: &mut [T],
    first: usize,
    rows: usize,
    columns: usize,
) {
    const TILE: usize = 16;
    for (index, y) in y.chunks_mut(TILE * rows).enumerate() {
        let column = first + index * TILE;
        for row in (0..rows).step_by(TILE) {
            let height = TILE.min(rows - row);
            for (index, y) in y.chunks_exact_mut(rows).enumerate() {
                let x = x[row * columns + column + index..].iter().step_by(columns);
                for (y, &x) in y[row..][..height].iter_mut().zip(x) {
                    *y = x;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes() {
        for (count, rows, columns) in [(2, 3, 5), (1, 33, 17), (3, 1, 4), (1, 700, 500), (0, 2, 2)]
        {
            let x: Vec<f64> = (0..count * rows * columns).map(|i| i as f64).collect();
            let mut y = vec![-1.0; x.len()];
            transpose(&x, &mut y, rows, columns);
            for (index, &y) in y.iter().enumerate() {
                let (matrix, at) = (index / (rows * columns), index % (rows * columns));
                let at = at % rows * columns + at / rows;
                assert_eq!(y, (matrix * rows * columns + at) as f64);
            }
        }
    }

    #[test]
    fn sums_columns() {
        let x: Vec<f64> = (0..700_000).map(|i| f64::from(i % 7)).collect();
        assert_eq!(column_sums(&x, 7), [0.0, 1e5, 2e5, 3e5, 4e5, 5e5, 6e5]);
        assert_eq!(column_sums::<f32>(&[], 2), [0.0, 0.0]);
    }
}

//! The depthwise convolution, one input channel and one output channel a group.
//!
//! Maps are (height, width, channels), weights (kernel height · kernel width, channels). Maps of
//! planes, (channels, height, width), are transposed block by block.

mod ring;
mod rows;
#[cfg(test)]
mod tests;

use super::buffer::room;
use super::layout::transpose_block;
use super::simd::{Element, run};
use super::window::Window;
use rayon::prelude::*;
use ring::Way;
use rows::WeightRows;
use std::ops::Range;

/// Bytes of a map that stay in a core's cache while its channels are visited in turn.
const CACHE: usize = 1 << 18;

/// Multiplications that are worth a thread.
const WORK: usize = 1 << 18;

/// Batches of maps: y = x * taps + bias, on all threads.
pub(crate) fn forward<T: Element>(
    x: &[T],
    taps: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
    window: &Window,
    channels: usize,
) {
    each_block(window, channels, y, window.output, |image, first, y| {
        let x = &x[image * window.pixels() * channels..][..window.pixels() * channels];
        forward_rows(x, taps, bias, y, first, window, channels);
    });
}

/// Batches of maps: the gradient of the input from that of the result, on all threads.
pub(crate) fn grad_input<T: Element>(
    grad: &[T],
    taps: &[T],
    x: &mut [T],
    window: &Window,
    channels: usize,
) {
    each_block(window, channels, x, window.input, |image, first, x| {
        let grad = &grad[image * window.places() * channels..][..window.places() * channels];
        grad_input_rows(grad, taps, x, first, window, channels);
    });
}

/// Calls `f` with blocks of rows of a batch of maps of this height and width. `f` gets the image,
/// the first row and the values.
fn each_block<T: Element>(
    window: &Window,
    channels: usize,
    maps: &mut [T],
    (height, width): (usize, usize),
    f: impl Fn(usize, usize, &mut [T]) + Sync,
) {
    let row = width * channels;
    if maps.is_empty() {
        return;
    }
    let images = maps.len() / (height * row);
    // Two blocks for each thread, but none lower than the kernel: neighbouring blocks both read
    // the rows between them.
    let wanted = (2 * rayon::current_num_threads()).div_ceil(images);
    let wanted = wanted.min(height.div_ceil(window.kernel.0));
    let blocks = (size_of::<T>() * height * row / CACHE + 1).max(wanted);
    let rows = height.div_ceil(blocks);
    let work = maps.len() * window.taps();
    each_part(
        maps,
        height * row,
        rows * row,
        work,
        |image, block, y, _| {
            f(image, block * rows, y);
        },
    );
}

/// Calls `f` with the parts of each map: the image, the part's number, its values, and memory to
/// use.
fn each_part<T: Element>(
    maps: &mut [T],
    map: usize,
    part: usize,
    work: usize,
    f: impl Fn(usize, usize, &mut [T], &mut [Vec<T>; 3]) + Sync,
) {
    if work < WORK {
        let mut memory = Default::default();
        for (image, map) in maps.chunks_mut(map).enumerate() {
            let parts = map.chunks_mut(part).enumerate();
            parts.for_each(|(part, values)| f(image, part, values, &mut memory));
        }
        return;
    }
    let images = maps.par_chunks_mut(map).enumerate();
    let parts = images.flat_map(|(image, map)| {
        let parts = map.par_chunks_mut(part).enumerate();
        parts.map(move |(part, values)| (image, part, values))
    });
    parts.for_each_init(Default::default, |memory, (image, part, values)| {
        f(image, part, values, memory);
    });
}

/// Batches of maps of (channels, height, width), weights (channels, taps): y = x * w + bias, on all
/// threads.
pub(crate) fn forward_planes<T: Element>(
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
    window: &Window,
    channels: usize,
) {
    let sizes = (window.pixels(), window.places());
    each_plane(x, w, y, window, channels, sizes, |x, w, y, planes| {
        let bias = bias.map(|bias| &bias[planes.clone()]);
        forward_rows(x, w, bias, y, 0, window, planes.len());
    });
}

/// Batches of maps of (channels, height, width), weights (channels, taps): the gradient of the
/// input from that of the result, on all threads.
pub(crate) fn grad_input_planes<T: Element>(
    grad: &[T],
    w: &[T],
    x: &mut [T],
    window: &Window,
    channels: usize,
) {
    let sizes = (window.places(), window.pixels());
    each_plane(grad, w, x, window, channels, sizes, |grad, w, x, planes| {
        grad_input_rows(grad, w, x, 0, window, planes.len());
    });
}

/// Calls `f` with blocks of channels, their weights and their results, all with the channels last.
/// A block has as many channels as stay in a core's cache.
fn each_plane<T: Element>(
    x: &[T],
    w: &[T],
    y: &mut [T],
    window: &Window,
    channels: usize,
    (from, to): (usize, usize),
    f: impl Fn(&[T], &[T], &mut [T], Range<usize>) + Sync,
) {
    if y.is_empty() {
        return;
    }
    let block = CACHE / (size_of::<T>() * (from + to));
    // Whole vectors of any width: a multiple of 16 numbers, as in the widest.
    let block = (block / 16 * 16).clamp(16, channels.max(16));
    let (taps, work) = (window.taps(), y.len() * window.taps());
    each_part(
        y,
        channels * to,
        block * to,
        work,
        |image, part, y, memory| {
            let (first, count) = (part * block, y.len() / to);
            let x = &x[(image * channels + first) * from..][..count * from];
            let w = &w[first * taps..][..count * taps];
            let [x_last, w_last, y_last] = memory;
            let (x_last, w_last) = (room(x_last, x.len()), room(w_last, w.len()));
            transpose_block(x, x_last, 0, count, from);
            transpose_block(w, w_last, 0, count, taps);
            let y_last = room(y_last, y.len());
            f(x_last, w_last, y_last, first..first + count);
            transpose_block(y_last, y, 0, to, count);
        },
    );
}

/// One map: the rows of the result that fill `y`, from row `first` on, on this thread.
pub(crate) fn forward_rows<T: Element>(
    x: &[T],
    taps: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
    first: usize,
    window: &Window,
    channels: usize,
) {
    let (window, spread, turned) = (*window, 1, false);
    let pass = Way {
        window,
        spread,
        turned,
        channels,
    };
    pass.run(x, taps, bias, y, first);
}

/// One map: the rows of the input's gradient that fill `x`, from row `first` on, on this thread.
pub(crate) fn grad_input_rows<T: Element>(
    grad: &[T],
    taps: &[T],
    x: &mut [T],
    first: usize,
    window: &Window,
    channels: usize,
) {
    // With zeros between the gradients, any stride becomes a stride of 1.
    let pass = Way {
        window: Window {
            stride: 1,
            ..window.reversed()
        },
        spread: window.stride,
        turned: true,
        channels,
    };
    pass.run(grad, taps, None, x, first);
}

/// Batches of maps: the gradient of the weights, on all threads.
pub(crate) fn grad_weight<T: Element>(
    grad: &[T],
    x: &[T],
    taps: &mut [T],
    window: &Window,
    channels: usize,
) {
    taps.fill(T::ZERO);
    if x.is_empty() || grad.is_empty() {
        return;
    }
    let (x_map, grad_map) = (window.pixels() * channels, window.places() * channels);
    let partial = |x: &[T], grad: &[T]| {
        let mut sums = vec![T::ZERO; taps.len()];
        for (x, grad) in x.chunks(x_map).zip(grad.chunks(grad_map)) {
            run(WeightRows {
                pass: Way {
                    window: *window,
                    spread: 1,
                    turned: false,
                    channels,
                },
                x,
                grad,
                taps: &mut sums,
            });
        }
        sums
    };
    // A fixed number of parts: the order of summation must not depend on the threads.
    let images = (x.len() / x_map).div_ceil(8);
    let parts = x.chunks(images * x_map).zip(grad.chunks(images * grad_map));
    let parts: Vec<_> = match grad.len() * window.taps() < WORK {
        true => parts.map(|(x, grad)| partial(x, grad)).collect(),
        false => {
            let parts: Vec<_> = parts.collect();
            let parts = parts.into_par_iter();
            parts.map(|(x, grad)| partial(x, grad)).collect()
        }
    };
    for part in parts {
        for (sum, part) in taps.iter_mut().zip(part) {
            *sum += part;
        }
    }
}

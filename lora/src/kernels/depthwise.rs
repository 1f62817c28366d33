//! The depthwise convolution, one input channel and one output channel a group.
//!
//! Maps are (height, width, channels), weights (kernel height · kernel width, channels). A vector
//! holds neighbouring channels of one pixel. The rows that a row of outputs sees are copied to a
//! ring of aligned vectors with the padding around them, so that the loop over the kernel knows
//! neither borders nor channels that fill no vector; it holds the sums of neighbouring outputs in
//! registers.

use super::buffer::buffer;
use super::conv::transpose_block;
use super::simd::{Element, Vector, run};
use super::window::Window;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a map that stay in a core's cache while its channels are visited in turn.
const CACHE: usize = 1 << 19;

/// Products that are worth a thread.
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

/// Calls `f` with the blocks of rows of a batch of `size` maps: their image, first row and values.
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
    let wanted = (2 * rayon::current_num_threads()).div_ceil(images);
    let wanted = wanted.min(height.div_ceil(window.kernel.0));
    let blocks = (size_of::<T>() * height * row / CACHE + 1).max(wanted);
    let rows = height.div_ceil(blocks);
    let work = maps.len() * window.taps();
    each_part(maps, height * row, rows * row, work, |image, block, y| {
        f(image, block * rows, y);
    });
}

/// Calls `f` with the parts of each map: the image, the part's number and values.
fn each_part<T: Element>(
    maps: &mut [T],
    map: usize,
    part: usize,
    work: usize,
    f: impl Fn(usize, usize, &mut [T]) + Sync,
) {
    if work < WORK {
        for (image, map) in maps.chunks_mut(map).enumerate() {
            let parts = map.chunks_mut(part).enumerate();
            parts.for_each(|(part, values)| f(image, part, values));
        }
        return;
    }
    let images = maps.par_chunks_mut(map).enumerate();
    let parts = images.flat_map(|(image, map)| {
        let parts = map.par_chunks_mut(part).enumerate();
        parts.map(move |(part, values)| (image, part, values))
    });
    parts.for_each(|(image, part, values)| f(image, part, values));
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

/// Batches of maps of (channels, height, width), weights (channels, taps): the gradient of the input
/// from that of the result, on all threads.
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

/// Calls `f` with blocks of channels, their weights and their results, all with the channels last:
/// so many that they stay in a core's cache.
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
    let block = CACHE / 2 / (size_of::<T>() * (from + to));
    let block = (block / 16 * 16).clamp(16, channels.max(16));
    let (taps, work) = (window.taps(), y.len() * window.taps());
    each_part(y, channels * to, block * to, work, |image, part, y| {
        let (first, count) = (part * block, y.len() / to);
        let x = &x[(image * channels + first) * from..][..count * from];
        let w = &w[first * taps..][..count * taps];
        let (mut x_last, mut w_last) = (buffer(x.len()), buffer(w.len()));
        transpose_block(x, &mut x_last, 0, count, from);
        transpose_block(w, &mut w_last, 0, count, taps);
        let mut y_last = buffer(y.len());
        f(&x_last, &w_last, &mut y_last, first..first + count);
        transpose_block(&y_last, y, 0, to, count);
    });
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
    let pass = Pass {
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
    // With zeros between the gradients a stride is one of 1.
    let pass = Pass {
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
                pass: Pass {
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

/// The way from a map to another through a kernel.
#[derive(Clone, Copy)]
struct Pass {
    window: Window,
    /// Steps from row to row and column to column of the map that is seen, zeros between them.
    spread: usize,
    /// The kernel is turned by half a turn.
    turned: bool,
    channels: usize,
}

impl Pass {
    fn run<T: Element>(self, x: &[T], taps: &[T], bias: Option<&[T]>, y: &mut [T], first: usize) {
        // As many outputs at a time as leave the fewest unused.
        let kernel = Rows {
            pass: self,
            x,
            taps,
            bias,
            y,
            first,
        };
        match self.window.output.1 {
            0 => {}
            1 => run(Segments::<_, 1>(kernel)),
            2..=4 => run(Segments::<_, 4>(kernel)),
            width if width % 8 != 0 && width % 7 == 0 => run(Segments::<_, 7>(kernel)),
            _ => run(Segments::<_, 8>(kernel)),
        }
    }
}

/// The padded rows that a row of outputs sees, one vector of channels a pixel.
struct Ring<T: Element, S: Simd> {
    pass: Pass,
    /// Rows from the first that an output sees to the last.
    span: usize,
    /// Pixels in a row, padding included.
    width: usize,
    pixels: Vec<T::Raw<S>>,
    /// The padded row to come.
    next: usize,
}

impl<T: Element, S: Simd> Ring<T, S> {
    /// A ring for rows of at least `outputs` outputs.
    #[inline(always)]
    fn new(simd: S, pass: Pass, outputs: usize) -> Self {
        let Window {
            kernel,
            stride,
            dilation,
            ..
        } = pass.window;
        let span = (kernel.0 - 1) * dilation + 1;
        let width = (outputs - 1) * stride + (kernel.1 - 1) * dilation + 1;
        Self {
            pass,
            span,
            width,
            pixels: vec![T::raw_splat(simd, T::ZERO); span * width],
            next: 0,
        }
    }

    /// The row of the map at a padded row; none in the padding and between spread rows.
    #[inline(always)]
    fn source(&self, row: usize) -> Option<usize> {
        let at = usize::try_from(row as isize - self.pass.window.padding.0).ok()?;
        let (row, rest) = (at / self.pass.spread, at % self.pass.spread);
        (rest == 0 && row < self.pass.window.input.0).then_some(row)
    }

    /// Copies what an output row sees, if it is not there, and lists where: the starts of its rows
    /// and the rows of the kernel.
    #[inline(always)]
    fn advance(
        &mut self,
        simd: S,
        x: &[T],
        channel: usize,
        output: usize,
        lines: &mut Vec<(usize, usize)>,
    ) {
        let Window {
            stride,
            dilation,
            kernel,
            ..
        } = self.pass.window;
        let start = output * stride;
        for row in self.next.max(start)..start + self.span {
            if let Some(source) = self.source(row) {
                self.copy(simd, x, channel, row, source);
            }
        }
        self.next = start + self.span;
        lines.clear();
        for tap in 0..kernel.0 {
            let row = start + tap * dilation;
            if self.source(row).is_some() {
                lines.push((row % self.span * self.width, tap));
            }
        }
    }

    #[inline(always)]
    fn copy(&mut self, simd: S, x: &[T], channel: usize, row: usize, source: usize) {
        let Pass {
            window,
            spread,
            channels,
            ..
        } = self.pass;
        let (padding, width) = (window.padding.1, window.input.1);
        // Of the map's columns those whose place, column · spread + padding, is in the ring.
        let first = (-padding).max(0) as usize;
        let first = first.div_ceil(spread).min(width);
        let room = (self.width as isize - padding).max(0) as usize;
        let end = room.div_ceil(spread).clamp(first, width);
        let place = (first * spread) as isize + padding;
        let start = row % self.span * self.width;
        let ring = &mut self.pixels[start..start + self.width];
        let ring = ring[(place.max(0) as usize).min(self.width)..].iter_mut();
        let x = &x[source * width * channels..][..width * channels];
        let x = x[first * channels..end * channels].chunks_exact(channels);
        for (pixel, x) in ring.step_by(spread).zip(x) {
            *pixel = Vector::<T, S>::load(simd, &x[channel..]).raw();
        }
    }
}

struct Rows<'a, T> {
    pass: Pass,
    x: &'a [T],
    taps: &'a [T],
    bias: Option<&'a [T]>,
    y: &'a mut [T],
    first: usize,
}

/// A pass that computes N neighbouring outputs at a time.
struct Segments<K, const N: usize>(K);

impl<T: Element, const N: usize> WithSimd for Segments<Rows<'_, T>, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Rows {
            pass,
            x,
            taps,
            bias,
            y,
            first,
        } = self.0;
        let (channels, width) = (pass.channels, pass.window.output.1);
        let count = pass.window.taps();
        let mut ring = Ring::<T, S>::new(simd, pass, width.next_multiple_of(N));
        let mut lines = Vec::with_capacity(pass.window.kernel.0);
        let mut weights = vec![T::raw_splat(simd, T::ZERO); count];
        for channel in (0..channels).step_by(T::lanes::<S>()) {
            for (tap, weight) in weights.iter_mut().enumerate() {
                let tap = if pass.turned { count - 1 - tap } else { tap };
                let values = &taps[tap * channels..][..channels];
                *weight = Vector::<T, S>::load(simd, &values[channel..]).raw();
            }
            let bias = match bias {
                Some(bias) => Vector::load(simd, &bias[channel..channels]),
                None => Vector::zero(simd),
            };
            ring.next = 0;
            for (row, y) in y.chunks_exact_mut(width * channels).enumerate() {
                ring.advance(simd, x, channel, first + row, &mut lines);
                for (segment, y) in y.chunks_mut(N * channels).enumerate() {
                    let start = segment * N * pass.window.stride;
                    let sums: [_; N] = match pass.window.stride {
                        1 => sums(simd, bias, &ring, &weights, &lines, start, 1),
                        stride => sums(simd, bias, &ring, &weights, &lines, start, stride),
                    };
                    for (sum, y) in sums.into_iter().zip(y.chunks_exact_mut(channels)) {
                        sum.store(&mut y[channel..]);
                    }
                }
            }
        }
    }
}

/// N neighbouring outputs from the place `start` of the ring on.
#[inline(always)]
fn sums<T: Element, S: Simd, const N: usize>(
    simd: S,
    bias: Vector<T, S>,
    ring: &Ring<T, S>,
    weights: &[T::Raw<S>],
    lines: &[(usize, usize)],
    start: usize,
    stride: usize,
) -> [Vector<T, S>; N] {
    let Window {
        kernel, dilation, ..
    } = ring.pass.window;
    let mut sums = [bias; N];
    for &(line, tap) in lines {
        let line = &ring.pixels[line + start..];
        let weights = &weights[tap * kernel.1..][..kernel.1];
        for (column, &weight) in weights.iter().enumerate() {
            let weight = Vector::new(simd, weight);
            let x = &line[column * dilation..][..(N - 1) * stride + 1];
            for n in 0..N {
                sums[n] = Vector::new(simd, x[n * stride]).mul_add(weight, sums[n]);
            }
        }
    }
    sums
}

/// Adds a map's gradient of the weights to `taps`.
struct WeightRows<'a, T> {
    pass: Pass,
    x: &'a [T],
    grad: &'a [T],
    taps: &'a mut [T],
}

impl<T: Element> WithSimd for WeightRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            pass,
            x,
            grad,
            taps,
        } = self;
        let (channels, width) = (pass.channels, pass.window.output.1);
        let kernel = pass.window.kernel;
        let zero = T::raw_splat(simd, T::ZERO);
        let mut ring = Ring::<T, S>::new(simd, pass, width);
        let mut lines = Vec::with_capacity(kernel.0);
        let mut weights = vec![zero; pass.window.taps()];
        let mut grads = vec![zero; width];
        for channel in (0..channels).step_by(T::lanes::<S>()) {
            weights.fill(zero);
            ring.next = 0;
            for (row, grad) in grad.chunks_exact(width * channels).enumerate() {
                ring.advance(simd, x, channel, row, &mut lines);
                for (pixel, grad) in grads.iter_mut().zip(grad.chunks_exact(channels)) {
                    *pixel = Vector::<T, S>::load(simd, &grad[channel..]).raw();
                }
                for &(line, tap) in &lines {
                    let line = &ring.pixels[line..][..ring.width];
                    let weights = &mut weights[tap * kernel.1..][..kernel.1];
                    add_products::<T, S>(simd, pass.window, line, &grads, weights);
                }
            }
            for (values, &weight) in taps.chunks_exact_mut(channels).zip(&weights) {
                let values = &mut values[channel..];
                let sum = Vector::load(simd, values) + Vector::new(simd, weight);
                sum.store(values);
            }
        }
    }
}

/// Adds the products of a row of gradients with a row of pixels to a row of weights.
#[inline(always)]
fn add_products<T: Element, S: Simd>(
    simd: S,
    window: Window,
    line: &[T::Raw<S>],
    grads: &[T::Raw<S>],
    mut weights: &mut [T::Raw<S>],
) {
    let mut start = 0;
    while let Some(count) = match weights.len() {
        0 => None,
        1..3 => Some(1),
        3..7 => Some(3),
        _ => Some(7),
    } {
        let (some, rest) = weights.split_at_mut(count);
        let line = &line[start * window.dilation..];
        match count {
            7 => add_some::<T, S, 7>(simd, window, line, grads, some),
            3 => add_some::<T, S, 3>(simd, window, line, grads, some),
            _ => add_some::<T, S, 1>(simd, window, line, grads, some),
        }
        start += count;
        weights = rest;
    }
}

#[inline(always)]
fn add_some<T: Element, S: Simd, const N: usize>(
    simd: S,
    window: Window,
    line: &[T::Raw<S>],
    grads: &[T::Raw<S>],
    weights: &mut [T::Raw<S>],
) {
    let mut sums = [Vector::<T, S>::zero(simd); N];
    for (sum, &weight) in sums.iter_mut().zip(&*weights) {
        *sum = Vector::new(simd, weight);
    }
    for (place, &grad) in grads.iter().enumerate() {
        let grad = Vector::new(simd, grad);
        let x = &line[place * window.stride..][..(N - 1) * window.dilation + 1];
        for n in 0..N {
            sums[n] = Vector::new(simd, x[n * window.dilation]).mul_add(grad, sums[n]);
        }
    }
    for (sum, weight) in sums.into_iter().zip(weights) {
        *weight = sum.raw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::{Level, force_level};

    fn values(count: usize, seed: usize) -> Vec<f64> {
        let value = |i: usize| ((i + 1 + 101 * seed) as f64 * 0.618_033_988_749_895).fract() - 0.5;
        (0..count).map(value).collect()
    }

    /// Result, input's gradient and weights' gradient by the definition, of one map.
    fn by_definition(
        x: &[f64],
        taps: &[f64],
        grad: &[f64],
        window: &Window,
        channels: usize,
    ) -> [Vec<f64>; 3] {
        let mut y = vec![0.0; grad.len()];
        let (mut on_x, mut on_taps) = (vec![0.0; x.len()], vec![0.0; taps.len()]);
        for row in 0..window.output.0 {
            for column in 0..window.output.1 {
                for tap in 0..window.taps() {
                    let (down, right) = (tap / window.kernel.1, tap % window.kernel.1);
                    let Some(from) = window.row(row, down) else {
                        continue;
                    };
                    let at = column * window.stride + right * window.dilation;
                    let at = at as isize - window.padding.1;
                    if at < 0 || at >= window.input.1 as isize {
                        continue;
                    }
                    for channel in 0..channels {
                        let y_at = (row * window.output.1 + column) * channels + channel;
                        let x_at = (from * window.input.1 + at as usize) * channels + channel;
                        let tap = tap * channels + channel;
                        y[y_at] += x[x_at] * taps[tap];
                        on_x[x_at] += grad[y_at] * taps[tap];
                        on_taps[tap] += grad[y_at] * x[x_at];
                    }
                }
            }
        }
        [y, on_x, on_taps]
    }

    fn windows() -> Vec<Window> {
        let window = |input, kernel, stride, dilation, padding: (isize, isize)| {
            let (height, width): (usize, usize) = input;
            let (down, right): (usize, usize) = kernel;
            let side = |length: usize, kernel: usize, padding: isize| {
                (length + 2 * padding as usize - dilation * (kernel - 1) - 1) / stride + 1
            };
            let output = (side(height, down, padding.0), side(width, right, padding.1));
            Window {
                input,
                kernel,
                output,
                stride,
                dilation,
                padding,
            }
        };
        vec![
            window((9, 14), (7, 7), 1, 1, (3, 3)),
            window((5, 9), (3, 3), 1, 1, (1, 1)),
            window((4, 3), (7, 7), 1, 1, (3, 3)),
            window((3, 3), (3, 3), 1, 1, (0, 0)),
            window((8, 11), (3, 5), 2, 1, (1, 2)),
            window((9, 7), (3, 2), 3, 2, (2, 4)),
            window((1, 13), (1, 4), 2, 3, (0, 5)),
            window((6, 5), (2, 2), 1, 1, (3, 3)),
        ]
    }

    #[track_caller]
    fn assert_close<T: Element>(what: &str, actual: &[T], expected: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), expected.len(), "{what}");
        for (actual, expected) in actual.iter().zip(expected) {
            let error = (actual.to_f64() - expected).abs();
            assert!(error <= tolerance, "{what}: an error of {error}");
        }
    }

    /// Maps with the channels last as maps with the channels first.
    fn planes<T: Element>(maps: &[T], pixels: usize, channels: usize) -> Vec<T> {
        let mut planes = vec![T::ZERO; maps.len()];
        let maps = maps.chunks(pixels * channels);
        let pairs = maps.zip(planes.chunks_mut(pixels * channels));
        pairs.for_each(|(from, to)| transpose_block(from, to, 0, pixels, channels));
        planes
    }

    fn check<T: Element>(level: Level, window: &Window, channels: usize, tolerance: f64) {
        let of = |values: &[f64]| values.iter().map(|&v| T::of(v)).collect::<Vec<T>>();
        let (map, result) = (window.pixels() * channels, window.places() * channels);
        let (x, taps) = (values(2 * map, 1), values(window.taps() * channels, 2));
        let (grad, bias) = (values(2 * result, 3), values(channels, 4));
        let mut expected: [Vec<f64>; 3] = Default::default();
        for (x, grad) in x.chunks(map).zip(grad.chunks(result)) {
            let [y, on_x, on_taps] = by_definition(x, &taps, grad, window, channels);
            expected[0].extend(y.iter().zip(bias.iter().cycle()).map(|(y, bias)| y + bias));
            expected[1].extend(on_x);
            expected[2].resize(on_taps.len(), 0.0);
            expected[2]
                .iter_mut()
                .zip(on_taps)
                .for_each(|(sum, v)| *sum += v);
        }
        let what = format!("{level:?} {window:?} of {channels} channels");
        let (x, taps, grad, bias) = (of(&x), of(&taps), of(&grad), of(&bias));

        let mut y = vec![T::of(9.0); 2 * result];
        forward(&x, &taps, Some(&bias), &mut y, window, channels);
        assert_close(&what, &y, &expected[0], tolerance);
        let mut on_x = vec![T::of(9.0); 2 * map];
        grad_input(&grad, &taps, &mut on_x, window, channels);
        assert_close(&what, &on_x, &expected[1], tolerance);
        let mut on_taps = vec![T::of(9.0); taps.len()];
        grad_weight(&grad, &x, &mut on_taps, window, channels);
        assert_close(&what, &on_taps, &expected[2], 10.0 * tolerance);

        // The same from channels first.
        let [y, on_x, _] = expected;
        let y = planes(&y, window.places(), channels);
        let on_x = planes(&on_x, window.pixels(), channels);
        let x = planes(&x, window.pixels(), channels);
        let w = planes(&taps, window.taps(), channels);
        let mut from_planes = vec![T::of(9.0); 2 * result];
        forward_planes(&x, &w, Some(&bias), &mut from_planes, window, channels);
        assert_close(&what, &from_planes, &y, tolerance);
        let grad = planes(&grad, window.places(), channels);
        let mut from_planes = vec![T::of(9.0); 2 * map];
        grad_input_planes(&grad, &w, &mut from_planes, window, channels);
        assert_close(&what, &from_planes, &on_x, tolerance);
    }

    #[test]
    fn every_level_agrees_with_the_definition() {
        for level in [Level::Plain, Level::Avx2, Level::Avx512] {
            force_level(level);
            for window in windows() {
                for channels in [1, 3, 7, 13, 17, 96] {
                    check::<f32>(level, &window, channels, 4e-6);
                    check::<f64>(level, &window, channels, 1e-14);
                }
            }
            check::<f32>(level, &windows()[0], 1000, 4e-6);
        }
    }

    #[test]
    fn rows_are_those_of_the_whole() {
        let (window, channels) = (windows()[0], 17);
        let x = values(window.pixels() * channels, 1);
        let taps = values(window.taps() * channels, 2);
        let mut whole = vec![0.0; window.places() * channels];
        forward(&x, &taps, None, &mut whole, &window, channels);
        let row = window.output.1 * channels;
        for (first, rows) in [(0, 2), (2, 5), (8, 1)] {
            let mut some = vec![0.0; rows * row];
            forward_rows(&x, &taps, None, &mut some, first, &window, channels);
            assert_close("rows", &some, &whole[first * row..][..rows * row], 1e-14);
        }
    }
}

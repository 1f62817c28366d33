//! The rows of a depthwise convolution.
//!
//! A vector holds neighbouring channels of one pixel. The rows that a row of outputs sees are copied
//! to a ring of aligned vectors with the padding around them, so that the loop over the kernel knows
//! neither borders nor channels that fill no vector; it holds the sums of neighbouring outputs in
//! registers.

use crate::kernels::simd::{Element, Vector, run};
use crate::kernels::window::Window;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The way from a map to another through a kernel.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) window: Window,
    /// Steps from row to row and column to column of the map that is seen, zeros between them.
    pub(super) spread: usize,
    /// The kernel is turned by half a turn.
    pub(super) turned: bool,
    pub(super) channels: usize,
}

impl Pass {
    pub(super) fn run<T: Element>(
        self,
        x: &[T],
        taps: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
        first: usize,
    ) {
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

/// Vectors that do not cross the lines of a cache, which would make reading them twice the work.
struct Aligned<T> {
    values: Vec<T>,
    range: Range<usize>,
}

impl<T: Element> Aligned<T> {
    #[inline(always)]
    fn zeros<S: Simd>(count: usize) -> Self {
        const LINE: usize = 64;
        let (count, spare) = (count * T::lanes::<S>(), LINE / size_of::<T>());
        let values = vec![T::ZERO; count + spare];
        let start = values.as_ptr().align_offset(LINE).min(spare);
        let range = start..start + count;
        Self { values, range }
    }

    #[inline(always)]
    fn vectors<S: Simd>(&self) -> &[T::Raw<S>] {
        T::raw_split::<S>(&self.values[self.range.clone()]).0
    }

    #[inline(always)]
    fn vectors_mut<S: Simd>(&mut self) -> &mut [T::Raw<S>] {
        T::raw_split_mut::<S>(&mut self.values[self.range.clone()]).0
    }
}

/// The padded rows that a row of outputs sees, one vector of channels a pixel.
struct Ring<T: Element> {
    pass: Pass,
    /// Rows from the first that an output sees to the last.
    span: usize,
    /// Pixels in a row, padding included.
    width: usize,
    pixels: Aligned<T>,
    /// Which rows are there, not padding.
    filled: Vec<bool>,
    /// The padded row to come.
    next: usize,
}

impl<T: Element> Ring<T> {
    /// A ring for rows of at least `outputs` outputs.
    #[inline(always)]
    fn new<S: Simd>(pass: Pass, outputs: usize) -> Self {
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
            pixels: Aligned::zeros::<S>(span * width),
            filled: vec![false; span],
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
    fn advance<S: Simd>(
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
            let (slot, source) = (row % self.span, self.source(row));
            self.filled[slot] = source.is_some();
            if let Some(source) = source {
                self.copy(simd, x, channel, slot, source);
            }
        }
        self.next = start + self.span;
        lines.clear();
        let mut slot = start % self.span;
        for tap in 0..kernel.0 {
            if self.filled[slot] {
                lines.push((slot * self.width, tap));
            }
            slot += dilation;
            if slot >= self.span {
                slot -= self.span;
            }
        }
    }

    #[inline(always)]
    fn copy<S: Simd>(&mut self, simd: S, x: &[T], channel: usize, slot: usize, source: usize) {
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
        let start = slot * self.width;
        let ring = &mut self.pixels.vectors_mut::<S>()[start..start + self.width];
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
        let mut ring = Ring::<T>::new::<S>(pass, width.next_multiple_of(N));
        let mut lines = Vec::with_capacity(pass.window.kernel.0);
        let mut weights = Aligned::<T>::zeros::<S>(count);
        for channel in (0..channels).step_by(T::lanes::<S>()) {
            for (tap, weight) in weights.vectors_mut::<S>().iter_mut().enumerate() {
                let tap = if pass.turned { count - 1 - tap } else { tap };
                let values = &taps[tap * channels..][..channels];
                *weight = Vector::<T, S>::load(simd, &values[channel..]).raw();
            }
            let bias = match bias {
                Some(bias) => Vector::load(simd, &bias[channel..channels]),
                None => Vector::zero(simd),
            };
            let weights = weights.vectors::<S>();
            ring.next = 0;
            for (row, y) in y.chunks_exact_mut(width * channels).enumerate() {
                ring.advance(simd, x, channel, first + row, &mut lines);
                for (segment, y) in y.chunks_mut(N * channels).enumerate() {
                    let start = segment * N * pass.window.stride;
                    let sums: [_; N] = match pass.window.stride {
                        1 => sums(simd, bias, &ring, weights, &lines, start, 1),
                        stride => sums(simd, bias, &ring, weights, &lines, start, stride),
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
    ring: &Ring<T>,
    weights: &[T::Raw<S>],
    lines: &[(usize, usize)],
    start: usize,
    stride: usize,
) -> [Vector<T, S>; N] {
    let Window {
        kernel, dilation, ..
    } = ring.pass.window;
    let pixels = ring.pixels.vectors::<S>();
    let mut sums = [bias; N];
    let lines = lines.iter().map(|&(line, tap)| {
        let weights = &weights[tap * kernel.1..][..kernel.1];
        (&pixels[line + start..], weights)
    });
    match (kernel.1, stride, dilation) {
        (7, 1, 1) => {
            for (line, weights) in lines {
                sums = add_line::<T, S, N, 7>(simd, line, weights, sums);
            }
        }
        (5, 1, 1) => {
            for (line, weights) in lines {
                sums = add_line::<T, S, N, 5>(simd, line, weights, sums);
            }
        }
        (3, 1, 1) => {
            for (line, weights) in lines {
                sums = add_line::<T, S, N, 3>(simd, line, weights, sums);
            }
        }
        _ => {
            for (line, weights) in lines {
                for (column, &weight) in weights.iter().enumerate() {
                    let weight = Vector::new(simd, weight);
                    let x = &line[column * dilation..][..(N - 1) * stride + 1];
                    for n in 0..N {
                        sums[n] = Vector::new(simd, x[n * stride]).mul_add(weight, sums[n]);
                    }
                }
            }
        }
    }
    sums
}

/// The body with each number as a constant, so that what it indexes stays in registers.
macro_rules! unrolled {
    ($at:ident in [$($n:literal)*] $body:block) => {
        $({
            const $at: usize = $n;
            $body
        })*
    };
}

/// Adds the products with K neighbouring weights; each pixel is read once.
#[inline(always)]
fn add_line<T: Element, S: Simd, const N: usize, const K: usize>(
    simd: S,
    line: &[T::Raw<S>],
    weights: &[T::Raw<S>],
    mut sums: [Vector<T, S>; N],
) -> [Vector<T, S>; N] {
    let mut kernel = [Vector::<T, S>::zero(simd); K];
    for k in 0..K {
        kernel[k] = Vector::new(simd, weights[k]);
    }
    let line = &line[..N + K - 1];
    unrolled!(AT in [0 1 2 3 4 5 6 7 8 9 10 11 12 13] {
        if AT < N + K - 1 {
            let x = Vector::new(simd, line[AT]);
            for k in 0..K {
                if AT >= k && AT - k < N {
                    sums[AT - k] = x.mul_add(kernel[k], sums[AT - k]);
                }
            }
        }
    });
    sums
}

/// Adds a map's gradient of the weights to `taps`.
pub(super) struct WeightRows<'a, T> {
    pub(super) pass: Pass,
    pub(super) x: &'a [T],
    pub(super) grad: &'a [T],
    pub(super) taps: &'a mut [T],
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
        let mut ring = Ring::<T>::new::<S>(pass, width);
        let mut lines = Vec::with_capacity(kernel.0);
        let mut weights = vec![zero; pass.window.taps()];
        let mut grads = Aligned::<T>::zeros::<S>(width);
        for channel in (0..channels).step_by(T::lanes::<S>()) {
            weights.fill(zero);
            ring.next = 0;
            for (row, grad) in grad.chunks_exact(width * channels).enumerate() {
                ring.advance(simd, x, channel, row, &mut lines);
                let grads = grads.vectors_mut::<S>();
                for (pixel, grad) in grads.iter_mut().zip(grad.chunks_exact(channels)) {
                    *pixel = Vector::<T, S>::load(simd, &grad[channel..]).raw();
                }
                for &(line, tap) in &lines {
                    let line = &ring.pixels.vectors::<S>()[line..][..ring.width];
                    let weights = &mut weights[tap * kernel.1..][..kernel.1];
                    add_products::<T, S>(simd, pass.window, line, grads, weights);
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

//! Rows of a depthwise convolution's result.
//!
//! A vector holds neighbouring channels of one pixel. The sums of neighbouring pixels stay in
//! registers while the kernel moves over the pixels that they see.

use super::ring::{Aligned, Ring, Way};
use crate::kernels::simd::{Element, Vector, run};
use crate::kernels::window::Window;
use pulp::{Simd, WithSimd};

impl Way {
    pub(super) fn run<T: Element>(
        self,
        x: &[T],
        taps: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
        first: usize,
    ) {
        // The number of outputs at a time that leaves the fewest unused at the end of a row.
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

struct Rows<'a, T> {
    pass: Way,
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

/// The body with each number as a constant, so that the arrays it indexes stay in registers.
macro_rules! unrolled {
    ($at:ident in [$($n:literal)*] $body:block) => {
        $({
            let $at: usize = $n;
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
    unrolled!(at in [0 1 2 3 4 5 6 7 8 9 10 11 12 13] {
        if at < N + K - 1 {
            let x = Vector::new(simd, line[at]);
            for k in 0..K {
                if at >= k && at - k < N {
                    sums[at - k] = x.mul_add(kernel[k], sums[at - k]);
                }
            }
        }
    });
    sums
}

/// Adds a map's gradient of the weights to `taps`.
pub(super) struct WeightRows<'a, T> {
    pub(super) pass: Way,
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
    // The sums of so many weights stay in registers; 7 and 3 are the usual widths of a kernel.
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

//! The rows that a row of a depthwise convolution's result sees.
//!
//! The rows are copied to a ring of aligned vectors with the padding around them, so that the loop
//! over the kernel knows neither borders nor channels that fill no vector.

use crate::kernels::simd::{Element, Vector};
use crate::kernels::window::Window;
use pulp::Simd;
use std::ops::Range;

/// The way from one map to another through a kernel.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) window: Window,
    /// Steps between rows and between columns of the seen map, with zeros in the gaps.
    pub(super) spread: usize,
    /// Whether the kernel is turned by half a turn.
    pub(super) turned: bool,
    pub(super) channels: usize,
}

/// Vectors that do not cross the lines of a cache: reading across a line is twice the work.
pub(super) struct Aligned<T> {
    values: Vec<T>,
    range: Range<usize>,
}

impl<T: Element> Aligned<T> {
    #[inline(always)]
    pub(super) fn zeros<S: Simd>(count: usize) -> Self {
        const LINE: usize = 64;
        let (count, spare) = (count * T::lanes::<S>(), LINE / size_of::<T>());
        let values = vec![T::ZERO; count + spare];
        let start = values.as_ptr().align_offset(LINE).min(spare);
        let range = start..start + count;
        Self { values, range }
    }

    #[inline(always)]
    pub(super) fn vectors<S: Simd>(&self) -> &[T::Raw<S>] {
        T::raw_split::<S>(&self.values[self.range.clone()]).0
    }

    #[inline(always)]
    pub(super) fn vectors_mut<S: Simd>(&mut self) -> &mut [T::Raw<S>] {
        T::raw_split_mut::<S>(&mut self.values[self.range.clone()]).0
    }
}

/// The padded rows that a row of outputs sees, one vector of channels a pixel.
pub(super) struct Ring<T: Element> {
    pub(super) pass: Way,
    /// Rows from the first that an output sees to the last.
    span: usize,
    /// Pixels in a row, padding included.
    pub(super) width: usize,
    pub(super) pixels: Aligned<T>,
    /// Which rows are there, not padding.
    filled: Vec<bool>,
    /// The padded row to come.
    pub(super) next: usize,
}

impl<T: Element> Ring<T> {
    /// A ring for rows of at least `outputs` outputs.
    #[inline(always)]
    pub(super) fn new<S: Simd>(pass: Way, outputs: usize) -> Self {
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
    pub(super) fn advance<S: Simd>(
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
        let Way {
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

//! Where the windows of a convolution lie.

use std::ops::Range;

/// The geometry of a convolution over (height, width) maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Height and width of the input.
    pub(crate) input: (usize, usize),
    /// Height and width of the kernel.
    pub(crate) kernel: (usize, usize),
    /// Height and width of the result.
    pub(crate) output: (usize, usize),
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    /// Rows above and columns left of the input; negative where no window sees the first ones.
    pub(crate) padding: (isize, isize),
}

impl Window {
    /// Weights of a kernel for one channel.
    pub(crate) fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// Pixels of an input map.
    pub(crate) fn pixels(&self) -> usize {
        self.input.0 * self.input.1
    }

    /// Pixels of a result's map.
    pub(crate) fn places(&self) -> usize {
        self.output.0 * self.output.1
    }

    /// The input's row that an output row sees through a row of the kernel; none in the padding.
    pub(crate) fn row(&self, output: usize, tap: usize) -> Option<usize> {
        let at = (output * self.stride + tap * self.dilation) as isize - self.padding.0;
        usize::try_from(at).ok().filter(|&at| at < self.input.0)
    }

    /// The kernel's columns through which an output column sees the input, and the input's column
    /// at the first of them.
    pub(crate) fn columns(&self, output: usize) -> (Range<usize>, usize) {
        let start = (output * self.stride) as isize - self.padding.1;
        let taps = |distance: isize| (distance.max(0) as usize).div_ceil(self.dilation);
        let end = taps(self.input.1 as isize - start).min(self.kernel.1);
        let first = taps(-start).min(end);
        let column = start + (first * self.dilation) as isize;
        (first..end, column.max(0) as usize)
    }

    /// For a stride of 1: the convolution of the results' gradient that gives the input's gradient.
    /// Its kernel is turned by half a turn.
    pub(crate) fn reversed(&self) -> Self {
        let rest = |kernel: usize, padding| (self.dilation * (kernel - 1)) as isize - padding;
        Self {
            input: self.output,
            output: self.input,
            padding: (
                rest(self.kernel.0, self.padding.0),
                rest(self.kernel.1, self.padding.1),
            ),
            ..*self
        }
    }
}

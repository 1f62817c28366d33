//! CPU kernels of the depthwise convolution, one input channel and one output channel a group.
//!
//! Candle runs a grouped convolution as one convolution a group; with as many groups as channels
//! that is tens of times slower than these loops.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;
use std::ops::{AddAssign, Mul, Range};

/// The geometry of a depthwise convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depthwise {
    /// (batch, channels, height, width)
    pub(super) input: (usize, usize, usize, usize),
    /// Height and width of the kernel.
    pub(super) kernel: (usize, usize),
    /// Height and width of the result.
    pub(super) output: (usize, usize),
    pub(super) stride: usize,
    pub(super) padding: usize,
    pub(super) dilation: usize,
}

impl Depthwise {
    pub(super) fn forward(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        self.run(x, w, Pass::Forward)
    }

    pub(super) fn grad_input(&self, grad: &Tensor, w: &Tensor) -> Result<Tensor> {
        self.run(grad, w, Pass::GradInput)
    }

    pub(super) fn grad_weight(&self, grad: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.run(grad, x, Pass::GradWeight)
    }

    fn run(&self, lhs: &Tensor, rhs: &Tensor, pass: Pass) -> Result<Tensor> {
        let kernel = Kernel { conv: *self, pass };
        lhs.contiguous()?
            .apply_op2_no_bwd(&rhs.contiguous()?, &kernel)
    }

    /// Calls `f` with each tap of the kernel, and for each row of the output that the tap reaches
    /// with the output's range and the start of the input's: `f(tap, output, input start)`.
    fn each_row(&self, mut f: impl FnMut(usize, Range<usize>, usize)) {
        let (_, _, height, width) = self.input;
        for ky in 0..self.kernel.0 {
            let rows = self.valid(ky, height, self.output.0);
            for kx in 0..self.kernel.1 {
                let columns = self.valid(kx, width, self.output.1);
                if columns.is_empty() {
                    continue;
                }
                let x = columns.start * self.stride + kx * self.dilation - self.padding;
                for row in rows.clone() {
                    let y = row * self.stride + ky * self.dilation - self.padding;
                    let start = row * self.output.1;
                    let output = start + columns.start..start + columns.end;
                    f(ky * self.kernel.1 + kx, output, y * width + x);
                }
            }
        }
    }

    /// The outputs whose input at this tap lies inside of the input's `length`.
    fn valid(&self, tap: usize, length: usize, outputs: usize) -> Range<usize> {
        // output · stride + tap · dilation − padding in 0..length
        let shift = tap * self.dilation;
        let start = self.padding.saturating_sub(shift).div_ceil(self.stride);
        let end = match (length + self.padding).checked_sub(shift + 1) {
            Some(last) => (last / self.stride + 1).min(outputs),
            None => 0,
        };
        start..end.max(start)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Forward,
    GradInput,
    GradWeight,
}

struct Kernel {
    conv: Depthwise,
    pass: Pass,
}

impl Kernel {
    fn compute<T: WithDType + AddAssign + Mul<Output = T>>(&self, lhs: &[T], rhs: &[T]) -> Vec<T> {
        let Depthwise { input, stride, .. } = self.conv;
        let channels = input.1;
        let (pixels, taps) = (input.2 * input.3, self.conv.kernel.0 * self.conv.kernel.1);
        let outputs = self.conv.output.0 * self.conv.output.1;
        let (size, plane) = match self.pass {
            Pass::Forward => (input.0 * channels * outputs, outputs),
            Pass::GradInput => (input.0 * channels * pixels, pixels),
            Pass::GradWeight => (channels * taps, taps),
        };
        let mut result = vec![T::zero(); size];
        if size == 0 {
            return result;
        }
        let planes = result.par_chunks_mut(plane).enumerate();
        match self.pass {
            Pass::Forward => planes.for_each(|(index, y)| {
                let x = &lhs[index * pixels..][..pixels];
                let w = &rhs[index % channels * taps..][..taps];
                self.conv.each_row(|tap, output, start| {
                    let x = x[start..].iter().step_by(stride);
                    add_scaled(&mut y[output], x, w[tap]);
                });
            }),
            Pass::GradInput => planes.for_each(|(index, x)| {
                let y = &lhs[index * outputs..][..outputs];
                let w = &rhs[index % channels * taps..][..taps];
                self.conv.each_row(|tap, output, start| {
                    let x = x[start..].iter_mut().step_by(stride);
                    for (x, &y) in x.zip(&y[output]) {
                        *x += y * w[tap];
                    }
                });
            }),
            Pass::GradWeight => planes.for_each(|(channel, w)| {
                for image in 0..input.0 {
                    let index = image * channels + channel;
                    let y = &lhs[index * outputs..][..outputs];
                    let x = &rhs[index * pixels..][..pixels];
                    self.conv.each_row(|tap, output, start| {
                        for (&x, &y) in x[start..].iter().step_by(stride).zip(&y[output]) {
                            w[tap] += x * y;
                        }
                    });
                }
            }),
        }
        result
    }

    fn shape(&self) -> Shape {
        let Depthwise {
            input,
            kernel,
            output,
            ..
        } = self.conv;
        match self.pass {
            Pass::Forward => (input.0, input.1, output.0, output.1).into(),
            Pass::GradInput => input.into(),
            Pass::GradWeight => (input.1, 1, kernel.0, kernel.1).into(),
        }
    }
}

fn add_scaled<'a, T: WithDType + AddAssign + Mul<Output = T>>(
    y: &mut [T],
    x: impl Iterator<Item = &'a T>,
    w: T,
) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += x * w;
    }
}

impl CustomOp2 for Kernel {
    fn name(&self) -> &'static str {
        "depthwise-conv2d"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (Some((start1, end1)), Some((start2, end2))) =
            (l1.contiguous_offsets(), l2.contiguous_offsets())
        else {
            bail!("depthwise-conv2d: arguments must be contiguous");
        };
        let (r1, r2) = (start1..end1, start2..end2);
        let result = match (s1, s2) {
            (CpuStorage::F32(a), CpuStorage::F32(b)) => {
                CpuStorage::F32(self.compute(&a[r1], &b[r2]))
            }
            (CpuStorage::F64(a), CpuStorage::F64(b)) => {
                CpuStorage::F64(self.compute(&a[r1], &b[r2]))
            }
            _ => bail!(
                "depthwise-conv2d: arguments must both be {:?} or {:?}",
                DType::F32,
                DType::F64
            ),
        };
        Ok((result, self.shape()))
    }
}

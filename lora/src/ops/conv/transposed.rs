//! Transposed convolutions: a convolution whose two passes have changed places.

use super::{Channels, Convolution, check, recorded};
use crate::kernels::conv::Conv;
use crate::kernels::window::Window;
use crate::ops::{Compute, working};
use candle_core::{Result, Tensor, bail};
use candle_nn::{Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig};

/// A two-dimensional transposed convolution, as [`candle_nn::ConvTranspose2d`] computes it.
///
/// `xs` is (batch, in, height, width), `weight` (in, out, kernel height, kernel width), `bias` (out).
/// A side of length n becomes (n - 1) · stride - 2 · padding + dilation · (kernel - 1) +
/// output_padding + 1. Only the gradients of tracked arguments are computed. On the CPU, bf16 and f16
/// are computed in f32.
///
/// # Errors
/// If the shapes or dtypes do not fit, or nothing of the result is left within the padding.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::ConvTranspose2dConfig;
///
/// let x = Tensor::ones((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
/// let w = Tensor::ones((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
/// let y = lora::ops::conv_transpose2d(&x, &w, None, &ConvTranspose2dConfig::default())?;
/// assert_eq!(y.squeeze(0)?.squeeze(0)?.to_vec2::<f32>()?, [[1., 2., 1.], [2., 4., 2.], [1., 2., 1.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv_transpose2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &ConvTranspose2dConfig,
) -> Result<Tensor> {
    let geometry = Geometry {
        stride: config.stride,
        dilation: config.dilation,
        groups: 1,
        padding: (config.padding, config.padding),
        output_padding: (config.output_padding, config.output_padding),
    };
    transposed(xs, weight, bias, geometry)
}

/// A one-dimensional transposed convolution, as [`candle_nn::ConvTranspose1d`] computes it.
///
/// `xs` is (batch, in, length), `weight` (in, out / groups, kernel), `bias` (out). Candle's own has no
/// backward pass. As [`conv_transpose2d`] otherwise.
///
/// # Errors
/// As [`conv_transpose2d`].
pub fn conv_transpose1d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &ConvTranspose1dConfig,
) -> Result<Tensor> {
    if xs.rank() != 3 || weight.rank() != 3 {
        bail!(
            "conv_transpose1d: the input must be (batch, in, length) and the weight (in, out, \
             kernel); they are {:?} and {:?}",
            xs.dims(),
            weight.dims()
        );
    }
    // A height of one; only the length is padded.
    let geometry = Geometry {
        stride: config.stride,
        dilation: config.dilation,
        groups: config.groups,
        padding: (0, config.padding),
        output_padding: (0, config.output_padding),
    };
    let (xs, weight) = (xs.unsqueeze(2)?, weight.unsqueeze(2)?);
    transposed(&xs, &weight, bias, geometry)?.squeeze(2)
}

/// The numbers of a transposed convolution, the paddings by height and width.
#[derive(Clone, Copy)]
struct Geometry {
    stride: usize,
    dilation: usize,
    groups: usize,
    padding: (usize, usize),
    output_padding: (usize, usize),
}

impl Geometry {
    /// A side of the result.
    fn side(
        &self,
        length: usize,
        kernel: usize,
        padding: usize,
        output_padding: usize,
    ) -> Result<usize> {
        let last = length
            .checked_sub(1)
            .and_then(|last| last.checked_mul(self.stride));
        let span = (kernel - 1).checked_mul(self.dilation);
        let padded = last.zip(span).and_then(|(last, span)| {
            last.checked_add(span)?
                .checked_add(output_padding)?
                .checked_add(1)
        });
        let padded = padded.filter(|&padded| isize::try_from(padded).is_ok());
        let cut = padding.checked_mul(2);
        let side = padded
            .zip(cut)
            .and_then(|(padded, cut)| padded.checked_sub(cut));
        match side.filter(|&side| side > 0) {
            Some(side) => Ok(side),
            None => bail!(
                "transposed convolution: nothing is left of a side of {length} with a kernel of \
                 {kernel}, stride {}, dilation {} and padding {padding}",
                self.stride,
                self.dilation
            ),
        }
    }

    /// The convolution from the result to the input, whose gradient of the input is the result.
    fn reversed(&self, xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Convolution> {
        if xs.rank() != 4 || weight.rank() != 4 {
            bail!(
                "conv_transpose2d: the input must be (batch, in, height, width) and the weight \
                 (in, out, height, width); they are {:?} and {:?}",
                xs.dims(),
                weight.dims()
            );
        }
        let (input, kernel) = (xs.dims4()?, weight.dims4()?);
        let Self {
            stride,
            dilation,
            groups,
            ..
        } = *self;
        let config = Conv2dConfig {
            stride,
            dilation,
            groups,
            ..Default::default()
        };
        let outputs = kernel.1.saturating_mul(groups);
        let fits = input.1 == kernel.0 && input.1.is_multiple_of(groups);
        let name = "transposed convolution";
        check(name, [xs, weight], bias, &config, fits, outputs)?;
        let result = (
            self.side(input.2, kernel.2, self.padding.0, self.output_padding.0)?,
            self.side(input.3, kernel.3, self.padding.1, self.output_padding.1)?,
        );
        let window = Window {
            input: result,
            kernel: (kernel.2, kernel.3),
            output: (input.2, input.3),
            stride,
            dilation,
            padding: (self.padding.0 as isize, self.padding.1 as isize),
        };
        Ok(Convolution {
            config,
            batch: input.0,
            conv: Conv {
                window,
                inputs: outputs,
                outputs: input.1,
                groups,
            },
            compute: Compute::of(xs),
        })
    }
}

fn transposed(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Geometry,
) -> Result<Tensor> {
    let shapes = geometry.reversed(xs, weight, bias)?;
    let order = Channels::First;
    recorded(
        "conv_transpose2d",
        [xs, weight],
        bias,
        |x, w| {
            let y = shapes.grad_input(order, &x.contiguous()?, w)?;
            match bias {
                Some(bias) => y.broadcast_add(&working(bias)?.reshape((1, (), 1, 1))?),
                None => Ok(y),
            }
        },
        move |grad, w| shapes.forward(order, grad, w, None),
        move |grad, x| shapes.grad_weight(order, &x.contiguous()?, grad),
        move |grad| shapes.grad_bias(order, grad),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv::{cpu, tensors};
    use candle_core::{DType, Device};

    /// Other devices compute by tensor operations: on the CPU both must agree.
    #[test]
    fn tensor_operations_agree_with_the_kernels() {
        let normal = |shape: [usize; 4]| Tensor::randn(0.0, 1.0, &shape, &Device::Cpu).unwrap();
        let cases = [
            ([2, 3, 4, 5], [3, 2, 3, 3], 2, 1, 1, (1, 1), (1, 1)),
            ([2, 4, 3, 2], [4, 2, 2, 3], 1, 3, 2, (0, 0), (2, 1)),
            ([1, 3, 1, 6], [3, 1, 1, 3], 2, 1, 3, (0, 1), (0, 1)),
            ([1, 2, 3, 3], [2, 3, 1, 1], 1, 2, 1, (0, 0), (1, 1)),
            ([2, 2, 4, 4], [2, 3, 3, 3], 1, 3, 1, (2, 2), (2, 2)),
        ];
        for (input, kernel, stride, dilation, groups, padding, output_padding) in cases {
            let geometry = Geometry {
                stride,
                dilation,
                groups,
                padding,
                output_padding,
            };
            let (x, w) = (normal(input), normal(kernel));
            assert_eq!(x.dtype(), DType::F64);
            let shapes = geometry.reversed(&x, &w, None).unwrap();
            let order = Channels::First;
            let same = |what: &str, a: Tensor, b: Tensor| {
                assert_eq!(a.dims(), b.dims(), "{what} {input:?}");
                let difference = (a - b).unwrap().abs().unwrap().sum_all().unwrap();
                let difference = difference.to_scalar::<f64>().unwrap();
                assert!(difference < 1e-9, "{what} {input:?}: {difference}");
            };
            let y = cpu::grad_input::<f64>(&shapes, order, &x, &w).unwrap();
            let by_tensors = tensors::grad_input(&shapes, &x, &w).unwrap();
            same("result", by_tensors, y.clone());
            let grad = normal(y.dims4().map(|(b, c, h, w)| [b, c, h, w]).unwrap());
            same(
                "gradient of the input",
                tensors::forward(&shapes, &grad, &w, None).unwrap(),
                cpu::forward::<f64>(&shapes, order, &grad, &w, None).unwrap(),
            );
            same(
                "gradient of the weight",
                tensors::grad_weight(&shapes, &x, &grad).unwrap(),
                cpu::grad_weight::<f64>(&shapes, order, &x, &grad).unwrap(),
            );
        }
    }
}

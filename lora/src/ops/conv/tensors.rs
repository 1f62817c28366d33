//! Convolutions by tensor operations, for devices without kernels of ours.

use super::{Channels, Convolution};
use candle_core::{Result, Tensor};

/// The result, channels first as the input.
pub(super) fn forward(
    shapes: &Convolution,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let shape = shapes.output(Channels::First);
    let y = if shapes.is_empty() {
        Tensor::zeros(&shape, x.dtype(), x.device())?
    } else if shapes.is_pointwise() {
        matrix(w)?.broadcast_matmul(&places(x)?)?.reshape(&shape)?
    } else {
        let (x, padding) = padded(shapes, x)?;
        let config = &shapes.config;
        let y = x.conv2d_with_algo(
            w,
            padding,
            config.stride,
            config.dilation,
            config.groups,
            config.cudnn_fwd_algo,
        )?;
        // A transposed convolution may pad its result by a stride and more: those windows see nothing.
        let [_, _, height, width] = shape;
        y.narrow(2, 0, height)?.narrow(3, 0, width)?.contiguous()?
    };
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(y),
    }
}

/// The gradient of the input: a transposed convolution of each group.
pub(super) fn grad_input(shapes: &Convolution, grad: &Tensor, w: &Tensor) -> Result<Tensor> {
    let shape = shapes.input(Channels::First);
    if shapes.is_empty() {
        return Tensor::zeros(&shape, grad.dtype(), grad.device());
    }
    if shapes.is_pointwise() {
        let x = matrix(w)?.t()?.broadcast_matmul(&places(grad)?)?;
        return x.reshape(&shape);
    }
    let [_, _, height, width] = shape;
    let (stride, dilation) = (shapes.config.stride, shapes.config.dilation);
    let (top, left) = padding(shapes);
    let (rows, columns) = (height + 2 * top, width + 2 * left);
    each_group(shapes, grad, w, 1, |grad, w| {
        // Computed without padding, with zeros where no window reached, and then cut.
        let full = grad.conv_transpose2d(w, 0, 0, stride, dilation)?;
        let full = full.pad_with_zeros(2, 0, rows - full.dim(2)?)?;
        let full = full.pad_with_zeros(3, 0, columns - full.dim(3)?)?;
        full.narrow(2, top, height)?.narrow(3, left, width)
    })
}

/// The gradient of the weight: a convolution of the input with the gradient, in which stride and
/// dilation change places, and batch and channels too.
pub(super) fn grad_weight(shapes: &Convolution, grad: &Tensor, x: &Tensor) -> Result<Tensor> {
    let kernel = shapes.kernel();
    if shapes.is_empty() {
        return Tensor::zeros(&kernel, grad.dtype(), grad.device());
    }
    if shapes.is_pointwise() {
        let rows = |t: &Tensor| t.transpose(0, 1)?.flatten_from(1);
        return rows(grad)?.matmul(&rows(x)?.t()?)?.reshape(&kernel);
    }
    let [_, _, height, width] = kernel;
    let (stride, dilation) = (shapes.config.stride, shapes.config.dilation);
    let (x, padding) = padded(shapes, x)?;
    each_group(shapes, grad, &x, 0, |grad, x| {
        let x = x.transpose(0, 1)?.contiguous()?;
        let grad = grad.transpose(0, 1)?.contiguous()?;
        let w = x.conv2d(&grad, padding, dilation, stride, 1)?;
        let w = w.narrow(2, 0, height)?.narrow(3, 0, width)?;
        w.transpose(0, 1)?.contiguous()
    })
}

/// Rows of padding above the input and columns left of it.
fn padding(shapes: &Convolution) -> (usize, usize) {
    let (top, left) = shapes.conv.window.padding;
    (top.unsigned_abs(), left.unsigned_abs())
}

/// The contiguous input, and the padding that is still to be added on all sides.
fn padded(shapes: &Convolution, x: &Tensor) -> Result<(Tensor, usize)> {
    let x = x.contiguous()?;
    match padding(shapes) {
        (top, left) if top == left => Ok((x, top)),
        (top, left) => {
            let x = x.pad_with_zeros(2, top, top)?;
            Ok((x.pad_with_zeros(3, left, left)?, 0))
        }
    }
}

/// Applies `f` to the groups of the gradient's channels and of `other`, a weight or an input, and
/// joins the results along `dim`.
fn each_group(
    shapes: &Convolution,
    grad: &Tensor,
    other: &Tensor,
    dim: usize,
    f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let groups = shapes.conv.groups;
    if groups == 1 {
        return f(grad, &other.contiguous()?)?.contiguous();
    }
    // A weight is grouped by its first dimension, an input by its channels.
    let grads = grad.chunk(groups, 1)?;
    let others = other.chunk(groups, 1 - dim)?;
    let parts = grads.iter().zip(&others);
    let parts = parts.map(|(grad, other)| f(&grad.contiguous()?, &other.contiguous()?));
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, dim)
}

/// The weight of a pointwise convolution as a matrix, (out, in).
fn matrix(w: &Tensor) -> Result<Tensor> {
    w.flatten_from(1)
}

/// (batch, channels, height, width) as (batch, channels, places).
fn places(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.flatten_from(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv::cpu;
    use candle_core::{DType, Device};
    use candle_nn::Conv2dConfig;

    #[track_caller]
    fn assert_same(what: &str, a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let difference = (a - b).unwrap().abs().unwrap().sum_all().unwrap();
        assert!(difference.to_scalar::<f64>().unwrap() < 1e-9, "{what}");
    }

    #[test]
    fn agree_with_the_kernels() {
        let device = Device::Cpu;
        let normal = |shape: [usize; 4]| Tensor::randn(0.0, 1.0, &shape, &device).unwrap();
        let cases = [
            ([2, 3, 5, 4], [4, 3, 3, 3], (1, 1), 1, 1, 1),
            ([2, 4, 7, 6], [6, 2, 3, 2], (2, 2), 2, 2, 2),
            ([2, 3, 1, 8], [3, 1, 1, 3], (0, 2), 2, 1, 3),
            ([1, 3, 4, 5], [2, 3, 1, 1], (0, 0), 1, 1, 1),
            ([1, 6, 4, 5], [2, 6, 3, 3], (1, 1), 1, 1, 1),
            ([0, 6, 4, 5], [2, 6, 3, 3], (1, 1), 1, 1, 1),
        ];
        for (input, kernel, padding, stride, dilation, groups) in cases {
            let (x, w) = (normal(input), normal(kernel));
            let bias = Tensor::randn(0.0, 1.0, kernel[0], &device).unwrap();
            let config = Conv2dConfig {
                padding: padding.0,
                stride,
                dilation,
                groups,
                cudnn_fwd_algo: None,
            };
            let shapes = Convolution::new(&x, &w, Some(&bias), &config, padding).unwrap();
            assert_eq!(x.dtype(), DType::F64);
            let order = Channels::First;
            let y = forward(&shapes, &x, &w, Some(&bias)).unwrap();
            let by_kernel = cpu::forward::<f64>(&shapes, order, &x, &w, Some(&bias)).unwrap();
            assert_same("result", &y, &by_kernel);
            let grad = normal(shapes.output(order));
            let by_kernel = cpu::grad_input::<f64>(&shapes, order, &grad, &w).unwrap();
            let on_x = grad_input(&shapes, &grad, &w).unwrap();
            assert_same("gradient of the input", &on_x, &by_kernel);
            let by_kernel = cpu::grad_weight::<f64>(&shapes, order, &grad, &x).unwrap();
            let on_w = grad_weight(&shapes, &grad, &x).unwrap();
            assert_same("gradient of the weight", &on_w, &by_kernel);
        }
    }
}

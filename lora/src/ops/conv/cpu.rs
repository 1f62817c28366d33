//! Convolutions by the CPU kernels.

use super::{Channels, Convolution};
use crate::kernels::adapted::{Direction, LinearKernel};
use crate::kernels::buffer::{Cpu, buffer, tensor};
use crate::kernels::conv::each_chunk;
use crate::kernels::depthwise;
use crate::kernels::layout::{column_sums, transpose};
use crate::kernels::matrix::{Matrix, Threads, multiply};
use crate::kernels::simd::Element;
use crate::ops::linear::product;
use candle_core::{Result, Tensor};

/// The result, in the memory order of the input.
pub(super) fn forward<T: Element>(
    shapes: &Convolution,
    order: Channels,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let (x, w) = (Cpu::<T>::of(&x)?, Cpu::<T>::of(&w)?);
    let bias = bias.as_ref().map(Cpu::<T>::of).transpose()?;
    let bias = bias.as_deref();
    let (window, inputs, outputs) = shapes.sizes();
    let shape = shapes.output(order);
    let mut y = buffer(shape.iter().product());
    match order {
        Channels::First if shapes.is_depthwise() => {
            depthwise::forward_planes(&x, &w, bias, &mut y, window, inputs);
        }
        Channels::Last if shapes.is_depthwise() => {
            let taps = transposed(&w, inputs, window.taps());
            depthwise::forward(&x, &taps, bias, &mut y, window, inputs);
        }
        Channels::First if shapes.is_pointwise() => {
            let w = Matrix::new(&w, outputs, inputs);
            per_image(&mut y, outputs, &x, inputs, window.pixels(), w, bias);
        }
        Channels::Last if shapes.is_pointwise() => {
            let w = Matrix::new(&w, outputs, inputs);
            let rows = y.len().checked_div(outputs).unwrap_or(0);
            let layer = LinearKernel::new(w, bias, None, rows, Direction::Forward);
            layer.forward_all(&x, &mut y, &mut []);
        }
        Channels::First => {
            let x = transposed(&x, inputs, window.pixels());
            let w = transposed(&w, inputs / shapes.conv.groups, window.taps());
            let mut last = buffer(y.len());
            shapes.conv.forward(&x, &w, bias, &mut last);
            transpose(&last, &mut y, window.places(), outputs);
        }
        Channels::Last => {
            let w = transposed(&w, inputs / shapes.conv.groups, window.taps());
            shapes.conv.forward(&x, &w, bias, &mut y);
        }
    }
    tensor(y, &shape)
}

/// The gradient of the input, in the input's memory order.
pub(super) fn grad_input<T: Element>(
    shapes: &Convolution,
    order: Channels,
    grad: &Tensor,
    w: &Tensor,
) -> Result<Tensor> {
    let w = w.contiguous()?;
    let (grad, w) = (Cpu::<T>::of(grad)?, Cpu::<T>::of(&w)?);
    let (window, inputs, outputs) = shapes.sizes();
    let shape = shapes.input(order);
    let mut x = buffer(shape.iter().product());
    match order {
        Channels::First if shapes.is_depthwise() => {
            depthwise::grad_input_planes(&grad, &w, &mut x, window, inputs);
        }
        Channels::Last if shapes.is_depthwise() => {
            let taps = transposed(&w, inputs, window.taps());
            depthwise::grad_input(&grad, &taps, &mut x, window, inputs);
        }
        Channels::First if shapes.is_pointwise() => {
            let w = Matrix::new(&w, outputs, inputs).t();
            per_image(&mut x, inputs, &grad, outputs, window.pixels(), w, None);
        }
        Channels::Last if shapes.is_pointwise() => {
            let grad = Matrix::new(&grad, shapes.batch * window.pixels(), outputs);
            let w = Matrix::new(&w, outputs, inputs);
            multiply(&mut x, grad, w, T::ONE, false, Threads::All);
        }
        Channels::First => {
            let grad = transposed(&grad, outputs, window.places());
            let w = transposed(&w, inputs / shapes.conv.groups, window.taps());
            let mut last = buffer(x.len());
            shapes.conv.grad_input(&grad, &w, &mut last);
            transpose(&last, &mut x, window.pixels(), inputs);
        }
        Channels::Last => {
            let w = transposed(&w, inputs / shapes.conv.groups, window.taps());
            shapes.conv.grad_input(&grad, &w, &mut x);
        }
    }
    tensor(x, &shape)
}

/// The gradient of the weight.
pub(super) fn grad_weight<T: Element>(
    shapes: &Convolution,
    order: Channels,
    grad: &Tensor,
    x: &Tensor,
) -> Result<Tensor> {
    let (window, inputs, outputs) = shapes.sizes();
    let kernel = shapes.kernel();
    let x = x.contiguous()?;
    if order == Channels::Last && shapes.is_pointwise() {
        let rows = |t: &Tensor| t.flatten_to(2);
        return product(&rows(grad)?.t()?, &rows(&x)?)?.reshape(&kernel);
    }
    let (grad, x) = (Cpu::<T>::of(grad)?, Cpu::<T>::of(&x)?);
    let mut w = buffer(kernel.iter().product());
    if shapes.is_pointwise() {
        w.fill(T::ZERO);
        let size = window.pixels();
        if size > 0 {
            let images = grad.chunks(outputs * size).zip(x.chunks(inputs * size));
            for (grad, x) in images {
                let (grad, x) = (
                    Matrix::new(grad, outputs, size),
                    Matrix::new(x, inputs, size),
                );
                multiply(&mut w, grad, x.t(), T::ONE, true, Threads::All);
            }
        }
        return tensor(w, &kernel);
    }
    let (first_grad, first_x);
    let (grad, x): (&[T], &[T]) = match order {
        Channels::Last => (&grad, &x),
        Channels::First => {
            first_grad = transposed(&grad, outputs, window.places());
            first_x = transposed(&x, inputs, window.pixels());
            (&first_grad, &first_x)
        }
    };
    let mut last = buffer(w.len());
    if shapes.is_depthwise() {
        depthwise::grad_weight(grad, x, &mut last, window, inputs);
        transpose(&last, &mut w, window.taps(), inputs);
    } else {
        shapes.conv.grad_weight(grad, x, &mut last);
        transpose(&last, &mut w, window.taps(), inputs / shapes.conv.groups);
    }
    tensor(w, &kernel)
}

/// The sums over all but the last dimension.
pub(super) fn channel_sums<T: Element>(grad: &Tensor) -> Result<Tensor> {
    let channels = grad.dim(3)?;
    tensor(column_sums(&Cpu::<T>::of(grad)?, channels), channels)
}

/// y = w·x + bias for each image, x of (inputs, pixels).
fn per_image<T: Element>(
    y: &mut [T],
    outputs: usize,
    x: &[T],
    inputs: usize,
    pixels: usize,
    w: Matrix<'_, T>,
    bias: Option<&[T]>,
) {
    if y.is_empty() {
        return;
    }
    each_chunk(y, outputs * pixels, |image, y, _, threads| {
        if let Some(bias) = bias {
            for (y, &bias) in y.chunks_exact_mut(pixels).zip(bias) {
                y.fill(bias);
            }
        }
        let x = &x[image * inputs * pixels..][..inputs * pixels];
        let x = Matrix::new(x, inputs, pixels);
        multiply(y, w, x, T::ONE, bias.is_some(), threads);
    });
}

/// Matrices of (rows, columns), each transposed.
fn transposed<T: Element>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut y = buffer(x.len());
    transpose(x, &mut y, rows, columns);
    y
}

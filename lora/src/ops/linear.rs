//! The linear map, y = x·Wᵀ + b.

use super::{Compute, record, working};
use crate::kernels::adapted::{Direction, LinearKernel};
use crate::kernels::buffer::{Cpu, CpuMatrix, buffer, tensor};
use crate::kernels::matrix::{Threads, multiply};
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{D, Result, Tensor, bail};

/// y = x·Wᵀ + b, as [`candle_nn::Linear`] computes it.
///
/// `xs` is (.., in) of any rank from 1, `weight` (out, in), `bias` (out); the result is (.., out).
/// Only the gradients of tracked arguments are computed. On the CPU, bf16 and f16 are multiplied in
/// f32 and rounded once.
///
/// # Errors
/// If the shapes or dtypes do not fit.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let w = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?;
/// let x = Tensor::new(&[[10f32, 100.]], &Device::Cpu)?;
/// let y = lora::ops::linear(&x, &w, None)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[210., 430., 650.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    if xs.rank() == 0 || xs.dim(D::Minus1)? != inputs {
        bail!(
            "linear: the input's last dimension must be {inputs} for a weight of shape {:?}, its \
             shape is {:?}",
            weight.dims(),
            xs.dims()
        );
    }
    if xs.dtype() != weight.dtype() {
        bail!(
            "linear: the input is {:?}, but the weight is {:?}",
            xs.dtype(),
            weight.dtype()
        );
    }
    check_bias(xs, bias, outputs)?;
    let span = profile::forward("linear");
    let dtype = xs.dtype();
    let rows = xs.dims()[..xs.rank() - 1].iter().product::<usize>();
    let x = working(xs)?.contiguous()?.reshape((rows, inputs))?;
    let w = weight.detach();
    let y = forward(&x, &w, bias)?.to_dtype(dtype)?;
    let mut shape = xs.dims().to_vec();
    shape[xs.rank() - 1] = outputs;
    let y = y.reshape(shape)?;
    span.end([&y].into_iter());

    let xs_shape = xs.shape().clone();
    // The input is kept only for the gradient of the weight.
    let x = weight.track_op().then_some(x);
    // The node has a fixed number of arguments: an untracked one stands for a missing bias.
    let bias = bias.unwrap_or(&w).clone();
    let bias_shape = bias.shape().clone();
    let args = [xs, weight, &bias];
    let w = w.clone();
    record(
        "linear",
        args,
        y,
        move |grad, [on_xs, on_weight, on_bias]| {
            let grad = working(grad)?.reshape((rows, outputs))?;
            let on_xs = on_xs.then(|| {
                let grad = product(&grad, &working(&w)?)?;
                grad.to_dtype(dtype)?.reshape(&xs_shape)
            });
            let on_weight = x.as_ref().filter(|_| on_weight);
            let on_weight = on_weight.map(|x| product(&grad.t()?, x)?.to_dtype(dtype));
            let on_bias = on_bias.then(|| grad.sum(0)?.to_dtype(dtype)?.reshape(&bias_shape));
            Ok([
                on_xs.transpose()?,
                on_weight.transpose()?,
                on_bias.transpose()?,
            ])
        },
    )
}

/// Refuses a bias that is not one value an output, in the input's dtype.
pub(super) fn check_bias(xs: &Tensor, bias: Option<&Tensor>, outputs: usize) -> Result<()> {
    if let Some(bias) = bias
        && (bias.elem_count() != outputs || bias.dtype() != xs.dtype())
    {
        bail!(
            "linear: the bias must be {outputs} values of {:?}, it is {:?} of {:?}",
            xs.dtype(),
            bias.dims(),
            bias.dtype()
        );
    }
    Ok(())
}

/// x·wᵀ + bias of matrices, in the working precision.
fn forward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let bias = bias.map(|bias| working(bias)?.contiguous()).transpose()?;
    let w = working(w)?;
    match Compute::of(x) {
        Compute::F32 => on_cpu::<f32>(x, &w, bias.as_ref()),
        Compute::F64 => on_cpu::<f64>(x, &w, bias.as_ref()),
        Compute::Tensors => {
            let y = product(x, &w.t()?)?;
            match bias {
                Some(bias) => y.broadcast_add(&bias),
                None => Ok(y),
            }
        }
    }
}

fn on_cpu<T: Element>(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, outputs) = (x.dim(0)?, w.dim(0)?);
    let bias = bias.map(Cpu::<T>::of).transpose()?;
    let (x, w) = (Cpu::<T>::of(x)?, CpuMatrix::<T>::of(w)?);
    let mut y = buffer(rows * outputs);
    let layer = LinearKernel::new(w.view(), bias.as_deref(), None, rows, Direction::Forward);
    layer.forward_all(&x, &mut y, &mut []);
    tensor(y, (rows, outputs))
}

/// The product of two matrices, which may be empty or transposed.
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match Compute::of(a) {
        Compute::F32 => product_on_cpu::<f32>(a, b),
        Compute::F64 => product_on_cpu::<f64>(a, b),
        Compute::Tensors => {
            let ((m, k), n) = (a.dims2()?, b.dim(1)?);
            if m * k * n == 0 {
                return Tensor::zeros((m, n), a.dtype(), a.device());
            }
            a.matmul(b)
        }
    }
}

fn product_on_cpu<T: Element>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (m, n) = (a.dim(0)?, b.dim(1)?);
    if a.dim(1)? != b.dim(0)? {
        bail!("no product of shapes {:?} and {:?}", a.dims(), b.dims());
    }
    let mut y = buffer::<T>(m * n);
    let (a, b) = (CpuMatrix::<T>::of(a)?, CpuMatrix::<T>::of(b)?);
    multiply(&mut y, a.view(), b.view(), T::ONE, false, Threads::All);
    tensor(y, (m, n))
}

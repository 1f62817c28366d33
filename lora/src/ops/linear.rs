//! The linear map, y = x·Wᵀ + b.

use super::{record, working};
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
            "linear: the input is {:?} and the weight {:?}",
            xs.dtype(),
            weight.dtype()
        );
    }
    let dtype = xs.dtype();
    let rows = xs.dims()[..xs.rank() - 1].iter().product::<usize>();
    let x = working(xs)?.contiguous()?.reshape((rows, inputs))?;
    let w = weight.detach();
    let mut y = multiply(&x, &working(&w)?.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&working(bias)?)?;
    }
    let mut shape = xs.dims().to_vec();
    shape[xs.rank() - 1] = outputs;
    let y = y.to_dtype(dtype)?.reshape(shape)?;

    let xs_shape = xs.shape().clone();
    // The input is kept only for the gradient of the weight.
    let x = weight.track_op().then_some(x);
    // A missing bias is an argument that nothing tracks.
    let bias = bias.unwrap_or(&w).clone();
    let args = [xs, weight, &bias];
    let w = w.clone();
    record(
        "linear",
        args,
        y,
        move |grad, _, [on_xs, on_weight, on_bias]| {
            let grad = working(grad)?.reshape((rows, outputs))?;
            let on_xs = on_xs.then(|| {
                let grad = multiply(&grad, &working(&w)?)?;
                grad.to_dtype(dtype)?.reshape(&xs_shape)
            });
            let on_weight = x.as_ref().filter(|_| on_weight);
            let on_weight = on_weight.map(|x| multiply(&grad.t()?, x)?.to_dtype(dtype));
            let on_bias = on_bias.then(|| grad.sum(0)?.to_dtype(dtype));
            Ok([
                on_xs.transpose()?,
                on_weight.transpose()?,
                on_bias.transpose()?,
            ])
        },
    )
}

/// The product of two matrices, also of empty ones.
fn multiply(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((m, k), n) = (a.dims2()?, b.dim(1)?);
    if m * k * n == 0 {
        return Tensor::zeros((m, n), a.dtype(), a.device());
    }
    a.matmul(b)
}

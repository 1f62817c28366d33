//! The softmax.

use super::tape::memory_order;
use super::{Compute, record_with_value, working};
use crate::kernels::buffer::{Cpu, buffer, tensor};
use crate::kernels::simd::Element;
use crate::{kernels, profile};
use candle_core::shape::Dim;
use candle_core::{D, Result, Tensor, bail};

/// The softmax over the last dimension, as [`candle_nn::ops::softmax_last_dim`] computes it, with a
/// gradient.
///
/// # Errors
/// If the dtype is not a floating-point one or the tensor has no dimension.
///
/// ```
/// use candle_core::{Device, Var};
///
/// let x = Var::new(&[[0f32, 0.]], &Device::Cpu)?;
/// let y = lora::ops::softmax_last_dim(&x)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[0.5, 0.5]]);
/// assert!(y.sqr()?.backward()?.get(&x).is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    let Some(last) = xs.rank().checked_sub(1) else {
        bail!("softmax: the input has no dimension");
    };
    if !xs.dtype().is_float() {
        bail!(
            "softmax: the input must be floating-point, it is {:?}",
            xs.dtype()
        );
    }
    // Each row is computed alone, so rows in any order need no copy.
    match memory_order(xs.layout()) {
        Some(order) if !xs.is_contiguous() && order[last] == last => {
            let mut inverse = vec![0; order.len()];
            for (position, &dim) in order.iter().enumerate() {
                inverse[dim] = position;
            }
            rows(&xs.permute(order)?)?.permute(inverse)
        }
        _ => rows(&xs.contiguous()?),
    }
}

/// The softmax over any dimension, as [`candle_nn::ops::softmax`].
///
/// # Errors
/// If there is no such dimension or the dtype is not a floating-point one.
pub fn softmax<T: Dim>(xs: &Tensor, dim: T) -> Result<Tensor> {
    let dim = dim.to_index(xs.shape(), "softmax")?;
    let last = xs.rank() - 1;
    if dim == last {
        return softmax_last_dim(xs);
    }
    softmax_last_dim(&xs.transpose(dim, last)?)?.transpose(dim, last)
}

/// The softmax of the rows of a contiguous tensor.
fn rows(xs: &Tensor) -> Result<Tensor> {
    let span = profile::forward("softmax");
    let dtype = xs.dtype();
    let x = working(xs)?;
    let y = match Compute::of(&x) {
        Compute::F32 => forward::<f32>(&x)?,
        Compute::F64 => forward::<f64>(&x)?,
        Compute::Tensors if x.elem_count() == 0 => x.zeros_like()?,
        Compute::Tensors => candle_nn::ops::softmax_last_dim(&x)?,
    };
    // Half types keep the unrounded result, from which the backward pass computes.
    let exact = (y.dtype() != dtype).then(|| y.clone());
    let value = match exact {
        Some(_) => y.to_dtype(dtype)?,
        None => y,
    };
    span.end([&value].into_iter());
    record_with_value("softmax", [xs], value, move |grad, value, _| {
        let (grad, y) = (working(grad)?, exact.as_ref().unwrap_or(value));
        let on_xs = match Compute::of(y) {
            Compute::F32 => backward::<f32>(y, &grad)?,
            Compute::F64 => backward::<f64>(y, &grad)?,
            Compute::Tensors => {
                let along = (&grad * y)?.sum_keepdim(D::Minus1)?;
                (grad.broadcast_sub(&along)? * y)?
            }
        };
        Ok([Some(on_xs.to_dtype(dtype)?)])
    })
}

fn forward<T: Element>(x: &Tensor) -> Result<Tensor> {
    let mut y = buffer::<T>(x.elem_count());
    kernels::softmax::forward(&Cpu::of(x)?, &mut y, x.dim(D::Minus1)?);
    tensor(y, x.shape())
}

fn backward<T: Element>(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let mut on_x = buffer::<T>(y.elem_count());
    let (columns, grad) = (y.dim(D::Minus1)?, Cpu::of(grad)?);
    kernels::softmax::backward(&Cpu::of(y)?, &grad, &mut on_x, columns);
    tensor(on_x, y.shape())
}

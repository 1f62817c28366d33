//! The softmax.

use super::record_with_value;
use candle_core::shape::Dim;
use candle_core::{D, Result, Tensor};

/// The softmax over the last dimension, as [`candle_nn::ops::softmax_last_dim`] computes it, with a
/// gradient.
///
/// # Errors
/// If the dtype is not a floating-point one.
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
    let x = xs.detach().contiguous()?;
    let y = if x.elem_count() == 0 {
        x.zeros_like()?
    } else {
        candle_nn::ops::softmax_last_dim(&x)?
    };
    record_with_value("softmax-last-dim", [xs], y, |grad, y, _| {
        let along = (grad * y)?.sum_keepdim(D::Minus1)?;
        Ok([Some((grad.broadcast_sub(&along)? * y)?)])
    })
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

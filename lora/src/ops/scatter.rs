//! Scattering: candle's `scatter` and `scatter_add` have each other's backward pass.

use super::record;
use crate::profile;
use candle_core::shape::Dim;
use candle_core::{DType, Result, Tensor};

/// `xs`, with the elements of `source` added at `indexes` along a dimension, as
/// [`Tensor::scatter_add`].
///
/// `indexes` and `source` have one shape, which differs from that of `xs` in that dimension alone.
/// Candle's own backward pass fails, or gives `xs` no gradient at the indexes.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
///
/// let xs = Var::new(&[[1f32, 2., 3.]], &Device::Cpu)?;
/// let source = Var::new(&[[10f32, 20.]], &Device::Cpu)?;
/// let indexes = Tensor::new(&[[2u32, 2]], &Device::Cpu)?;
/// let y = lora::ops::scatter_add(&xs, &indexes, &source, 1)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[1., 2., 33.]]);
/// let grads = y.sqr()?.sum_all()?.backward()?;
/// assert_eq!(grads.get(&xs).unwrap().to_vec2::<f32>()?, [[2., 4., 66.]]);
/// assert_eq!(grads.get(&source).unwrap().to_vec2::<f32>()?, [[66., 66.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes or dtypes do not fit, or an index is outside.
pub fn scatter_add<D: Dim>(
    xs: &Tensor,
    indexes: &Tensor,
    source: &Tensor,
    dim: D,
) -> Result<Tensor> {
    let span = profile::forward("scatter_add");
    let dim = dim.to_index(xs.shape(), "scatter-add")?;
    let (x, indexes) = (xs.detach(), indexes.contiguous()?);
    let y = x.scatter_add(&indexes, &source.detach().contiguous()?, dim)?;
    span.end([&y].into_iter());
    record("scatter_add", [xs, source], y, move |grad, wanted| {
        let on_source = wanted[1].then(|| grad.gather(&indexes, dim));
        Ok([wanted[0].then(|| grad.clone()), on_source.transpose()?])
    })
}

/// `xs`, with the elements of `source` in place of its own at `indexes` along a dimension, as
/// [`Tensor::scatter`].
///
/// As [`scatter_add`] otherwise. Where an index comes twice, the element that the result holds gets the
/// gradient. Candle's own backward pass gives `xs` a gradient for elements that the result does not hold.
///
/// # Errors
/// As [`scatter_add`].
pub fn scatter<D: Dim>(xs: &Tensor, indexes: &Tensor, source: &Tensor, dim: D) -> Result<Tensor> {
    let span = profile::forward("scatter");
    let dim = dim.to_index(xs.shape(), "scatter")?;
    let (x, indexes) = (xs.detach(), indexes.contiguous()?);
    let y = x.scatter(&indexes, &source.detach().contiguous()?, dim)?;
    span.end([&y].into_iter());
    let shape = y.shape().clone();
    record("scatter", [xs, source], y, move |grad, wanted| {
        let on_xs = wanted[0].then(|| {
            let nothing = Tensor::zeros(indexes.shape(), grad.dtype(), grad.device())?;
            grad.scatter(&indexes, &nothing, dim)
        });
        let on_source = wanted[1].then(|| {
            // The number of each element of the source goes the way that the element went.
            let numbers = Tensor::arange(0, indexes.elem_count() as u32, grad.device())?;
            let numbers = numbers.reshape(indexes.shape())?;
            let nobody = Tensor::zeros(&shape, DType::U32, grad.device())?;
            let held = nobody.scatter(&indexes, &numbers, dim)?;
            let is_held = held.gather(&indexes, dim)?.eq(&numbers)?;
            let grad = grad.gather(&indexes, dim)?;
            is_held.where_cond(&grad, &grad.zeros_like()?)
        });
        Ok([on_xs.transpose()?, on_source.transpose()?])
    })
}

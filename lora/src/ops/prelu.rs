//! PReLU.

use super::record;
use crate::profile;
use candle_core::{Result, Tensor};

/// x where x is above zero, and `weight` · x elsewhere.
///
/// `weight` is broadcast to the shape of `xs`: it has as many dimensions or fewer. Only the gradients
/// of tracked arguments are computed. Where x is zero, the derivative is the weight, as in PyTorch.
///
/// # Errors
/// If the weight cannot be broadcast, or has another dtype.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[-2f32, 3.], [4., -5.]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[0.5f32], [0.1]], &Device::Cpu)?;
/// let y = lora::ops::prelu(&x, &weight)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[-1., 3.], [4., -0.5]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn prelu(xs: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let span = profile::forward("prelu");
    let (x, w) = (xs.detach(), weight.detach());
    let is_above = x.gt(&x.zeros_like()?)?;
    let y = is_above.where_cond(&x, &x.broadcast_mul(&w)?)?;
    span.end([&y].into_iter());

    // The input is kept only for the gradient of the weight.
    let x = weight.track_op().then_some(x);
    record("prelu", [xs, weight], y, move |grad, [on_xs, on_weight]| {
        let on_xs = on_xs.then(|| is_above.where_cond(grad, &grad.broadcast_mul(&w)?));
        let on_weight = x.as_ref().filter(|_| on_weight).map(|x| {
            let below = is_above.where_cond(&x.zeros_like()?, &(x * grad)?)?;
            sum_to(&below, &w)
        });
        Ok([on_xs.transpose()?, on_weight.transpose()?])
    })
}

/// The sums over all dimensions along which `like` was broadcast.
fn sum_to(xs: &Tensor, like: &Tensor) -> Result<Tensor> {
    let more = xs.rank() - like.rank();
    let is_broadcast = |dim: &usize| *dim < more || like.dims()[dim - more] == 1;
    let dims: Vec<usize> = (0..xs.rank()).filter(is_broadcast).collect();
    xs.sum(dims)?.reshape(like.shape())
}

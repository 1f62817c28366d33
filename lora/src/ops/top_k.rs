//! The choice of a router.

use candle_core::{D, Result, Tensor, bail};

/// The `k` largest values of the last dimension, largest first, and their indices (u32). Both are
/// (.., k). The values pass the gradient to the chosen entries, so that a mixture's gate learns.
///
/// A router that reads its weights to the CPU (`to_vec2`) to pick experts cuts the gate's gradient.
/// Take the indices to the CPU, and multiply by the values:
///
/// ```
/// use candle_core::{Device, Var};
///
/// let logits = Var::new(&[[0f32, 3., 1.]], &Device::Cpu)?;
/// let (weights, experts) = lora::ops::top_k(&logits, 2)?;
/// assert_eq!(weights.to_vec2::<f32>()?, [[3., 1.]]);
/// assert_eq!(experts.to_vec2::<u32>()?, [[1, 2]]);
/// let grads = weights.sum_all()?.backward()?;
/// assert_eq!(grads.get(&logits).unwrap().to_vec2::<f32>()?, [[0., 1., 1.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the last dimension is shorter than `k`.
pub fn top_k(xs: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let length = xs.dim(D::Minus1)?;
    if k > length {
        bail!("top_k: {k} of {length} values");
    }
    let order = xs.detach().contiguous()?.arg_sort_last_dim(false)?;
    let chosen = order.narrow(D::Minus1, 0, k)?.contiguous()?;
    let values = xs.contiguous()?.gather(&chosen, D::Minus1)?;
    Ok((values, chosen))
}

//! Normalisation, built from two differentiable parts: to standardise rows, and to scale and shift.

use super::{record, record_with_value, working};
use candle_core::{D, Result, Tensor, bail};

/// Layer normalisation over the last dimension, as [`candle_nn::ops::layer_norm`] computes it, with
/// a gradient.
///
/// `xs` is (.., n), `alpha` (the weight) and `beta` (the bias) are (n).
///
/// # Errors
/// If the shapes or dtypes do not fit.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
///
/// let x = Var::new(&[[1f32, 2., 3.]], &Device::Cpu)?;
/// let (alpha, beta) = (Tensor::new(&[1f32, 1., 1.], &Device::Cpu)?, Tensor::zeros(3, x.dtype(), x.device())?);
/// let y = lora::ops::layer_norm(&x, &alpha, &beta, 1e-5)?;
/// assert!(y.sqr()?.backward()?.get(&x).is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn layer_norm(xs: &Tensor, alpha: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    norm(xs, alpha, Some(beta), f64::from(eps), true)
}

/// Root-mean-square normalisation over the last dimension, as [`candle_nn::ops::rms_norm`] computes
/// it, with a gradient.
///
/// `xs` is (.., n), `alpha` (the weight) is (n).
///
/// # Errors
/// If the shapes or dtypes do not fit.
pub fn rms_norm(xs: &Tensor, alpha: &Tensor, eps: f32) -> Result<Tensor> {
    norm(xs, alpha, None, f64::from(eps), false)
}

/// Normalisation over the last dimension, then weight and bias.
pub(crate) fn norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
    remove_mean: bool,
) -> Result<Tensor> {
    let last = match xs.rank() {
        0 => bail!("norm: the input has no dimension to normalise over"),
        rank => rank - 1,
    };
    if xs.dim(last)? != weight.elem_count() {
        bail!(
            "norm: an input of shape {:?} does not fit a weight of shape {:?}",
            xs.dims(),
            weight.dims()
        );
    }
    affine(&standardize(xs, eps, remove_mean)?, weight, bias, last)
}

/// (x − mean) / √(var + eps) over the last dimension, or x / √(mean of squares + eps).
pub(crate) fn standardize(xs: &Tensor, eps: f64, remove_mean: bool) -> Result<Tensor> {
    let dtype = xs.dtype();
    let x = working(xs)?;
    let centred = if remove_mean {
        x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?
    } else {
        x
    };
    let inverse = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?
        .sqrt()?
        .recip()?;
    let y = centred.broadcast_mul(&inverse)?;
    // Half types keep the unrounded result for the backward pass.
    let exact = (y.dtype() != dtype).then(|| y.clone());
    let value = match exact {
        Some(_) => y.to_dtype(dtype)?,
        None => y,
    };
    record_with_value("standardize", [xs], value, move |grad, value, _| {
        let (grad, y) = (working(grad)?, exact.as_ref().unwrap_or(value));
        let along = (&grad * y)?.mean_keepdim(D::Minus1)?;
        let mut on_xs = (&grad - y.broadcast_mul(&along)?)?;
        if remove_mean {
            on_xs = on_xs.broadcast_sub(&grad.mean_keepdim(D::Minus1)?)?;
        }
        Ok([Some(on_xs.broadcast_mul(&inverse)?.to_dtype(dtype)?)])
    })
}

/// x·weight + bias along one dimension: layer scale, or the second half of a norm.
///
/// `xs` has n values in dimension `dim`, `weight` and `bias` are (n). Unlike a product of tensors it
/// computes the gradients of tracked arguments only.
///
/// # Errors
/// If the shapes or dtypes do not fit.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
/// let gamma = Tensor::new(&[10f32, 100.], &Device::Cpu)?;
/// let y = lora::ops::affine(&x, &gamma, None, 1)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[10., 200.], [30., 400.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn affine(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, dim: usize) -> Result<Tensor> {
    if dim >= xs.rank() || xs.dims()[dim] != weight.elem_count() {
        bail!(
            "affine: an input of shape {:?} does not fit a weight of shape {:?} along dimension {dim}",
            xs.dims(),
            weight.dims()
        );
    }
    let mut shape = vec![1; xs.rank()];
    shape[dim] = weight.elem_count();
    let (x, w) = (xs.detach(), weight.detach().reshape(shape.as_slice())?);
    let mut y = x.broadcast_mul(&w)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.detach().reshape(shape)?)?;
    }
    let others: Vec<usize> = (0..xs.rank()).filter(|&other| other != dim).collect();
    let (weight_shape, dtype) = (weight.shape().clone(), weight.dtype());
    let x = weight.track_op().then_some(x);
    // A missing bias is an argument that nothing tracks.
    let bias = bias.unwrap_or(&w).clone();
    let args = [xs, weight, &bias];
    let w = w.clone();
    record(
        "affine",
        args,
        y,
        move |grad, [on_xs, on_weight, on_bias]| {
            let on_xs = on_xs.then(|| grad.broadcast_mul(&w));
            let on_weight = x.as_ref().filter(|_| on_weight);
            // Sums of many half values are taken in the working precision.
            let total = |values: Tensor| {
                let sum = values.sum(others.as_slice())?.to_dtype(dtype)?;
                sum.reshape(&weight_shape)
            };
            let on_weight = on_weight.map(|x| total((working(grad)? * working(x)?)?));
            let on_bias = on_bias.then(|| total(working(grad)?));
            Ok([
                on_xs.transpose()?,
                on_weight.transpose()?,
                on_bias.transpose()?,
            ])
        },
    )
}

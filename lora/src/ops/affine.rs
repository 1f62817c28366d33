//! Scaling along one dimension, and sums: layer scale and shortcuts.

use super::{Compute, contiguous, in_memory_order_along, record, tape, working};
use crate::kernels::affine::{self as kernel, Along, Plus};
use crate::kernels::buffer::{Cpu, tensor};
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{DType, Result, Tensor, bail};

/// x·weight + bias along one dimension: layer scale, or the second half of a norm.
///
/// `xs` has n values in dimension `dim`, `weight` and `bias` are (n). Only the gradients of tracked
/// arguments are computed, unlike in a product of tensors. A permuted input is not copied, and the
/// result is permuted in the same way. On the CPU, bf16 and f16 are computed in f32 and rounded
/// once.
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
    check("affine", xs, "weight", weight, dim)?;
    if let Some(bias) = bias {
        check("affine", xs, "bias", bias, dim)?;
    }
    in_memory_order_along(xs, dim, |xs, dim| scale(xs, weight, bias, dim))
}

/// xs + gamma·branch along one dimension: a shortcut with layer scale. Without `gamma` it is
/// [`add`].
///
/// `xs` and `branch` are of the same shape, with n values in dimension `dim`; `gamma` is (n). The
/// result has the memory order of `xs`. A branch in the same order is not copied. Only the
/// gradients of tracked arguments are computed.
///
/// # Errors
/// If the shapes or dtypes do not fit.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
/// let gamma = Tensor::new(&[10f32, 100.], &Device::Cpu)?;
/// let y = lora::ops::residual(&x, &x, Some(&gamma), 1)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[11., 202.], [33., 404.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn residual(
    xs: &Tensor,
    branch: &Tensor,
    gamma: Option<&Tensor>,
    dim: usize,
) -> Result<Tensor> {
    let Some(gamma) = gamma else {
        return add(xs, branch);
    };
    check_alike("residual", xs, branch)?;
    check("residual", xs, "gamma", gamma, dim)?;
    alike(xs, branch, dim, |xs, branch, dim| {
        add_scaled(xs, branch, gamma, dim)
    })
}

/// xs + ys, of the same shape. Both arguments get the gradient of the sum unchanged.
///
/// The result has the memory order of `xs`.
///
/// # Errors
/// If the shapes or dtypes do not fit.
pub fn add(xs: &Tensor, ys: &Tensor) -> Result<Tensor> {
    check_alike("add", xs, ys)?;
    alike(xs, ys, 0, |xs, ys, _| {
        let span = profile::forward("add");
        let (x, y) = (xs.detach(), ys.detach());
        let sum = match (Compute::of(&x), x.dtype()) {
            (Compute::F32, DType::F32) => sum_on_cpu::<f32>(&x, &y)?,
            (Compute::F64, _) => sum_on_cpu::<f64>(&x, &y)?,
            _ => (x + y)?,
        };
        span.end([&sum].into_iter());
        record("add", [xs, ys], sum, |grad, _| {
            Ok([Some(grad.clone()), Some(grad.clone())])
        })
    })
}

fn sum_on_cpu<T: Element>(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let sum = kernel::add(&Cpu::<T>::of(x)?, &Cpu::<T>::of(y)?);
    tensor(sum, x.shape())
}

/// Applies an op to two tensors of the same shape, both in the memory order of `xs`.
fn alike(
    xs: &Tensor,
    ys: &Tensor,
    dim: usize,
    op: impl FnOnce(&Tensor, &Tensor, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let order = tape::memory_order(xs.layout()).filter(|_| !xs.is_contiguous());
    in_memory_order_along(xs, dim, |xs, dim| {
        let ys = match order {
            Some(order) => ys.permute(order)?,
            None => ys.clone(),
        };
        op(xs, &contiguous(&ys)?, dim)
    })
}

fn check(op: &str, xs: &Tensor, what: &str, weight: &Tensor, dim: usize) -> Result<()> {
    if dim >= xs.rank() || xs.dims()[dim] != weight.elem_count() {
        bail!(
            "{op}: an input of shape {:?} does not fit a {what} of shape {:?} along dimension {dim}",
            xs.dims(),
            weight.dims()
        );
    }
    if xs.dtype() != weight.dtype() {
        bail!(
            "{op}: the input is {:?}, but the {what} is {:?}",
            xs.dtype(),
            weight.dtype()
        );
    }
    Ok(())
}

fn check_alike(op: &str, xs: &Tensor, ys: &Tensor) -> Result<()> {
    if xs.dims() != ys.dims() || xs.dtype() != ys.dtype() {
        bail!(
            "{op}: a tensor of shape {:?} and {:?} does not fit one of shape {:?} and {:?}",
            xs.dims(),
            xs.dtype(),
            ys.dims(),
            ys.dtype()
        );
    }
    Ok(())
}

/// [`affine`] of a contiguous tensor.
fn scale(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, dim: usize) -> Result<Tensor> {
    let span = profile::forward("affine");
    let (x, w) = (xs.detach(), weight.detach());
    let y = scaled(&x, &w, bias.map_or(Addend::Nothing, Addend::Bias), dim)?;
    span.end([&y].into_iter());
    // The input is kept only for the gradient of the weight.
    let x = weight.track_op().then_some(x);
    // The node has a fixed number of arguments: an untracked one stands for a missing bias.
    let bias = bias.unwrap_or(&w).clone();
    let (args, w) = ([xs, weight, &bias], w.clone());
    let shapes = (weight.shape().clone(), bias.shape().clone());
    record(
        "affine",
        args,
        y,
        move |grad, [on_xs, on_weight, on_bias]| {
            let on_xs = on_xs.then(|| scaled(grad, &w, Addend::Nothing, dim));
            let (mut on_w, mut on_b) = (None, None);
            if on_weight || on_bias {
                let (weight, bias) = weight_grads(x.as_ref(), grad, dim)?;
                on_w = on_weight.then(|| weight.reshape(&shapes.0));
                on_b = on_bias.then(|| bias.reshape(&shapes.1));
            }
            Ok([on_xs.transpose()?, on_w.transpose()?, on_b.transpose()?])
        },
    )
}

/// [`residual`] of contiguous tensors.
fn add_scaled(xs: &Tensor, branch: &Tensor, gamma: &Tensor, dim: usize) -> Result<Tensor> {
    let span = profile::forward("residual");
    let (x, b, g) = (xs.detach(), branch.detach(), gamma.detach());
    let y = scaled(&b, &g, Addend::Each(&x), dim)?;
    span.end([&y].into_iter());
    // The branch is kept only for the gradient of gamma.
    let b = gamma.track_op().then_some(b);
    let shape = gamma.shape().clone();
    record(
        "residual",
        [xs, branch, gamma],
        y,
        move |grad, [_, on_branch, on_gamma]| {
            let on_branch = on_branch.then(|| scaled(grad, &g, Addend::Nothing, dim));
            let on_gamma = b.as_ref().filter(|_| on_gamma);
            let on_gamma = on_gamma.map(|b| weight_grads(Some(b), grad, dim)?.0.reshape(&shape));
            Ok([
                Some(grad.clone()),
                on_branch.transpose()?,
                on_gamma.transpose()?,
            ])
        },
    )
}

/// What is added to x·weight.
#[derive(Clone, Copy)]
enum Addend<'a> {
    Nothing,
    /// (n), along the dimension.
    Bias(&'a Tensor),
    /// Of x's shape.
    Each(&'a Tensor),
}

/// x·weight + `plus`, without a graph, in the dtype of x; x is contiguous.
fn scaled(x: &Tensor, weight: &Tensor, plus: Addend<'_>, dim: usize) -> Result<Tensor> {
    match Compute::of(x) {
        Compute::F32 => scaled_on_cpu::<f32>(x, weight, plus, dim),
        Compute::F64 => scaled_on_cpu::<f64>(x, weight, plus, dim),
        Compute::Tensors => scaled_tensors(x, weight, plus, dim),
    }
}

fn scaled_on_cpu<T: Element>(
    x: &Tensor,
    weight: &Tensor,
    plus: Addend<'_>,
    dim: usize,
) -> Result<Tensor> {
    let (values, weight) = (working(x)?, working(weight)?.contiguous()?);
    let plus = match plus {
        Addend::Nothing => None,
        Addend::Bias(other) | Addend::Each(other) => Some((plus, working(other)?.contiguous()?)),
    };
    let other = plus.as_ref().map(|(_, other)| Cpu::<T>::of(other));
    let other = other.transpose()?;
    let plus = match (&plus, &other) {
        (Some((Addend::Bias(_), _)), Some(bias)) => Plus::Bias(bias),
        (Some((Addend::Each(_), _)), Some(values)) => Plus::Each(values),
        _ => Plus::Nothing,
    };
    let (from, weight) = (Cpu::<T>::of(&values)?, Cpu::<T>::of(&weight)?);
    let y = kernel::scale(&from, &weight, plus, along(x, dim));
    tensor(y, x.shape())?.to_dtype(x.dtype())
}

fn scaled_tensors(x: &Tensor, weight: &Tensor, plus: Addend<'_>, dim: usize) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[dim] = weight.elem_count();
    let y = x.broadcast_mul(&weight.reshape(shape.as_slice())?)?;
    match plus {
        Addend::Nothing => Ok(y),
        Addend::Bias(bias) => y.broadcast_add(&bias.detach().reshape(shape)?),
        Addend::Each(values) => y + values,
    }
}

/// How a contiguous tensor lies around a dimension.
fn along(x: &Tensor, dim: usize) -> Along {
    Along {
        n: x.dims()[dim],
        inner: x.dims()[dim + 1..].iter().product(),
    }
}

/// Σ grad·x and Σ grad over all dimensions but one, (n) each. Without x the first has no meaning.
/// Sums of many half values are taken in the working precision.
fn weight_grads(x: Option<&Tensor>, grad: &Tensor, dim: usize) -> Result<(Tensor, Tensor)> {
    let (dtype, grad) = (grad.dtype(), working(grad)?);
    let x = x.map(working).transpose()?;
    let x = x.as_ref().unwrap_or(&grad);
    let (on_weight, on_bias) = match Compute::of(&grad) {
        Compute::F32 => weight_grads_on_cpu::<f32>(x, &grad, dim)?,
        Compute::F64 => weight_grads_on_cpu::<f64>(x, &grad, dim)?,
        Compute::Tensors => {
            let others: Vec<usize> = (0..grad.rank()).filter(|&other| other != dim).collect();
            let on_weight = (&grad * x)?.sum(others.as_slice())?;
            (on_weight, grad.sum(others)?)
        }
    };
    Ok((on_weight.to_dtype(dtype)?, on_bias.to_dtype(dtype)?))
}

fn weight_grads_on_cpu<T: Element>(
    x: &Tensor,
    grad: &Tensor,
    dim: usize,
) -> Result<(Tensor, Tensor)> {
    let (values, grads) = (Cpu::<T>::of(x)?, Cpu::<T>::of(grad)?);
    let along = along(grad, dim);
    let (on_weight, on_bias) = kernel::weight_grads(&values, &grads, along);
    Ok((tensor(on_weight, along.n)?, tensor(on_bias, along.n)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn kernels_and_tensor_operations_agree() -> Result<()> {
        let x = Tensor::randn(0f64, 1.0, (2, 5, 3), &Device::Cpu)?;
        let other = x.exp()?;
        for dim in 0..3 {
            let n = x.dims()[dim];
            let weight = Tensor::randn(0f64, 1.0, n, &Device::Cpu)?;
            for plus in [Addend::Nothing, Addend::Bias(&weight), Addend::Each(&other)] {
                let kernel = scaled(&x, &weight, plus, dim)?;
                let tensors = scaled_tensors(&x, &weight, plus, dim)?;
                let error = (kernel - tensors)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(error < 1e-14, "{dim}: {error:e}");
            }
        }
        Ok(())
    }
}

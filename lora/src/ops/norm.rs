//! Normalisation: layer, root-mean-square and group norm.

use super::contiguous::copy;
use super::{Compute, affine, in_memory_order_along, record, record_with_value, tape, working};
use crate::kernels::buffer::{Cpu, tensor};
use crate::kernels::group_norm::{self, Groups};
use crate::kernels::simd::Element;
use crate::kernels::{norm as rows, sums};
use crate::profile;
use candle_core::{D, DType, Result, Tensor, bail};

/// Layer normalisation over the last dimension, as [`candle_nn::ops::layer_norm`] computes it, with
/// a gradient.
///
/// `xs` is (.., n), `alpha` (the weight) and `beta` (the bias) are (n). On the CPU, bf16 and f16
/// are computed in f32 and rounded once.
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

/// Group normalisation as [`candle_nn::GroupNorm`] computes it, <https://arxiv.org/abs/1803.08494>:
/// in each example, the channels of a group are normalised together.
///
/// `xs` is (batch, channels, ..), `weight` and `bias` are (channels). Only the gradients of tracked
/// arguments are computed.
///
/// # Errors
/// If the shapes or dtypes do not fit, or the channels cannot be divided into the groups.
pub fn group_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
) -> Result<Tensor> {
    let channels = weight.elem_count();
    if xs.rank() < 3 || xs.dim(1)? != channels {
        bail!(
            "group norm: an input of shape {:?} is not (batch, {channels}, ..)",
            xs.dims()
        );
    }
    if groups == 0 || !channels.is_multiple_of(groups) {
        bail!("group norm: {channels} channels cannot be divided into {groups} groups of one size");
    }
    check("group norm", xs, weight, Some(bias))?;
    match Compute::of(xs) {
        Compute::F32 => group_norm_on_cpu::<f32>(xs, weight, bias, groups, eps),
        Compute::F64 => group_norm_on_cpu::<f64>(xs, weight, bias, groups, eps),
        Compute::Tensors => {
            let (batch, rest) = (xs.dim(0)?, xs.elem_count() / xs.dim(0)?.max(1) / groups);
            let grouped = xs.reshape((batch, groups, rest))?;
            let y = standardize(&grouped, eps, true)?.reshape(xs.shape())?;
            affine(&y, weight, Some(bias), 1)
        }
    }
}

fn group_norm_on_cpu<T: Element>(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
) -> Result<Tensor> {
    let span = profile::forward("group-norm");
    let shape = Groups {
        groups,
        channels: weight.elem_count() / groups,
        inner: xs.dims()[2..].iter().product(),
    };
    let (dtype, dims) = (xs.dtype(), xs.shape().clone());
    let (x, w, b) = (
        copy(&xs.detach())?,
        weight.detach(),
        working(bias)?.contiguous()?,
    );
    let (y, stats) = {
        let (x, w) = (working(&x)?, working(&w)?.contiguous()?);
        let (x, w, b) = (Cpu::<T>::of(&x)?, Cpu::<T>::of(&w)?, Cpu::<T>::of(&b)?);
        group_norm::forward(&x, &w, &b, shape, eps)
    };
    let y = tensor(y, &dims)?.to_dtype(dtype)?;
    span.end([&y].into_iter());
    let shapes = (weight.shape().clone(), bias.shape().clone());
    record("group-norm", [xs, weight, bias], y, move |grad, wanted| {
        let [on_xs, on_weight, on_bias] = wanted;
        let (x, w, grad) = (working(&x)?, working(&w)?.contiguous()?, working(grad)?);
        let (x, w, grad) = (Cpu::<T>::of(&x)?, Cpu::<T>::of(&w)?, Cpu::<T>::of(&grad)?);
        let grads = group_norm::backward(&x, &grad, &w, &stats, shape, on_xs);
        let finish = |wanted: bool, grad: Vec<T>, shape| {
            let grad = wanted.then(|| tensor(grad, shape)?.to_dtype(dtype));
            grad.transpose()
        };
        Ok([
            finish(on_xs, grads.on_x, &dims)?,
            finish(on_weight, grads.on_weight, &shapes.0)?,
            finish(on_bias, grads.on_bias, &shapes.1)?,
        ])
    })
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
    check("norm", xs, weight, bias)?;
    let settings = (eps, remove_mean);
    let rows = |xs: &Tensor| match Compute::of(xs) {
        Compute::F32 => norm_on_cpu::<f32>(xs, weight, bias, settings),
        Compute::F64 => norm_on_cpu::<f64>(xs, weight, bias, settings),
        Compute::Tensors => affine(&standardize(xs, eps, remove_mean)?, weight, bias, last),
    };
    // Each row is normalised alone, so rows may lie in memory in any order.
    match tape::memory_order(xs.layout()) {
        Some(order) if order.last() == Some(&last) => {
            in_memory_order_along(xs, last, |xs, _| rows(xs))
        }
        _ => rows(xs),
    }
}

/// Errors unless weight and bias have the input's dtype, and the same number of values.
fn check(op: &str, xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    if let Some(bias) = bias
        && bias.elem_count() != weight.elem_count()
    {
        bail!(
            "{op}: a weight of shape {:?} does not fit a bias of shape {:?}",
            weight.dims(),
            bias.dims()
        );
    }
    for weight in [Some(weight), bias].into_iter().flatten() {
        if weight.dtype() != xs.dtype() {
            bail!(
                "{op}: the input is {:?}, but the weight or the bias is {:?}",
                xs.dtype(),
                weight.dtype()
            );
        }
    }
    Ok(())
}

fn norm_on_cpu<T: Element>(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (eps, remove_mean): (f64, bool),
) -> Result<Tensor> {
    let span = profile::forward("norm");
    let dtype = xs.dtype();
    let x = copy(&xs.detach())?;
    let is_trained = weight.track_op() || bias.is_some_and(Tensor::track_op);
    let mut node = Rows {
        weight: weight.detach(),
        bias: bias.map(Tensor::detach),
        stats: Vec::new(),
        remove_mean,
        from_result: false,
    };
    let y = {
        let (x, w) = (working(&x)?, working(&node.weight)?.contiguous()?);
        let b = node.working_bias()?;
        let b = b.as_ref().map(Cpu::<T>::of).transpose()?;
        let (x, w) = (Cpu::<T>::of(&x)?, Cpu::<T>::of(&w)?);
        // What comes behind a norm mostly keeps its input: the node needs no tensor of its own then.
        // A result of a half type is rounded too much.
        let exact = matches!(dtype, DType::F32 | DType::F64);
        node.from_result = exact && !is_trained && rows::can_invert(&w, b.as_deref());
        let width = w.len();
        let (y, stats) = rows::forward(&x, width, eps, remove_mean, Some(&w), b.as_deref());
        node.stats = stats;
        y
    };
    let y = tensor(y, xs.shape())?.to_dtype(dtype)?;
    span.end([&y].into_iter());
    // The node has a fixed number of arguments: an untracked one stands for a missing bias.
    let frozen = node.weight.clone();
    let args = [xs, weight, bias.unwrap_or(&frozen)];
    match node.from_result {
        true => record_with_value("norm", args, y, move |grad, y, wanted| {
            node.backward(grad, y, wanted)
        }),
        false => record("norm", args, y, move |grad, wanted| {
            node.backward(grad, &x, wanted)
        }),
    }
}

/// What a norm's node keeps beside its input or its result.
struct Rows<T> {
    weight: Tensor,
    bias: Option<Tensor>,
    stats: Vec<T>,
    remove_mean: bool,
    /// Whether the gradient is computed from the result.
    from_result: bool,
}

impl<T: Element> Rows<T> {
    fn working_bias(&self) -> Result<Option<Tensor>> {
        let bias = self.bias.as_ref();
        bias.map(|bias| working(bias)?.contiguous()).transpose()
    }

    /// The gradients of input, weight and bias, from the input or the result.
    fn backward(
        &self,
        grad: &Tensor,
        kept: &Tensor,
        [on_xs, on_weight, on_bias]: [bool; 3],
    ) -> Result<[Option<Tensor>; 3]> {
        let (dtype, dims) = (kept.dtype(), kept.shape().clone());
        let width = self.weight.elem_count();
        let (kept, grad) = (working(kept)?, working(grad)?);
        let (kept, grad) = (Cpu::<T>::of(&kept)?, Cpu::<T>::of(&grad)?);
        let on_xs = on_xs.then(|| {
            let w = working(&self.weight)?.contiguous()?;
            let w = Cpu::<T>::of(&w)?;
            let (stats, remove_mean) = (&self.stats, self.remove_mean);
            let grad = match self.from_result {
                true => {
                    let b = self.working_bias()?;
                    let b = b.as_ref().map(Cpu::<T>::of).transpose()?;
                    rows::backward_of_result(&kept, &grad, stats, &w, b.as_deref(), remove_mean)
                }
                false => rows::backward(&kept, &grad, stats, Some(&w), width, remove_mean),
            };
            tensor(grad, &dims)?.to_dtype(dtype)
        });
        let (mut on_w, mut on_b) = (None, None);
        if on_weight || on_bias {
            let (weight, bias) = sums::columns(&kept, &grad, Some(&self.stats), width);
            let bias_shape = self.bias.as_ref().unwrap_or(&self.weight).shape();
            on_w = on_weight.then(|| tensor(weight, self.weight.shape())?.to_dtype(dtype));
            on_b = on_bias.then(|| tensor(bias, bias_shape)?.to_dtype(dtype));
        }
        Ok([on_xs.transpose()?, on_w.transpose()?, on_b.transpose()?])
    }
}

/// (x − mean) / √(var + eps) over the last dimension, or x / √(mean of squares + eps), by
/// tensor operations.
fn standardize(xs: &Tensor, eps: f64, remove_mean: bool) -> Result<Tensor> {
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
    // Half types keep the unrounded result, from which the backward pass computes.
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn kernels_and_tensor_operations_agree() -> Result<()> {
        let x = Var::from_tensor(&Tensor::randn(1f64, 2.0, (2, 5, 7), &Device::Cpu)?)?;
        let weight = Tensor::randn(0f64, 1.0, 7, &Device::Cpu)?;
        for remove_mean in [true, false] {
            let kernel = norm(&x, &weight, None, 1e-5, remove_mean)?;
            let tensors = affine(&standardize(&x, 1e-5, remove_mean)?, &weight, None, 2)?;
            let gradient = |y: &Tensor| {
                let grads = (y.sqr()? * x.as_detached_tensor().exp()?)?.backward()?;
                grads
                    .get(&x)
                    .map_or_else(|| bail!("no gradient"), |grad| Ok(grad.clone()))
            };
            for (kernel, tensors) in [
                (gradient(&kernel)?, gradient(&tensors)?),
                (kernel.detach(), tensors.detach()),
            ] {
                let scale = tensors.abs()?.max_all()?.to_scalar::<f64>()?;
                let error = (kernel - tensors)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(error < 1e-12 * scale, "{remove_mean}: {error:e}");
            }
        }
        Ok(())
    }
}

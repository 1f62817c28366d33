//! The linear map and the lookup with a weight in GGML's blocks.

use super::adapted::{LinearParts, UpdateParts};
use super::linear::{check_bias, product};
use super::{Compute, record, working};
use crate::kernels::adapted::{Direction, LinearKernel};
use crate::kernels::buffer::{Cpu, buffer, tensor};
use crate::kernels::matrix::Threads;
use crate::kernels::quantised;
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{D, Result, Tensor, bail};
use std::sync::Arc;

/// From so many rows on, a product with dequantised panels is used in eval mode too.
const FEW: usize = 16;

/// A frozen weight in blocks, as a forward pass reads it.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    /// (out, in)
    pub(crate) tensor: Arc<QTensor>,
    /// Inputs are never rounded: in training.
    pub(crate) is_exact: bool,
}

impl Blocks {
    /// Whether candle's kernels compute the product. They round each input to eight bits. For these types
    /// they are faster where a few rows are all that the weight is read for.
    fn is_left_to_candle(&self, xs: &Tensor) -> bool {
        let (_, inputs) = self.tensor.shape().dims2().unwrap_or_default();
        let is_fast = matches!(
            self.tensor.dtype(),
            GgmlDType::Q8_0
                | GgmlDType::Q2K
                | GgmlDType::Q3K
                | GgmlDType::Q4K
                | GgmlDType::Q5K
                | GgmlDType::Q6K
        );
        // Some of candle's kernels panic on an odd number of blocks.
        is_fast
            && inputs.is_multiple_of(64)
            && !self.is_exact
            && !xs.track_op()
            && Compute::of(xs) == Compute::F32
            && xs.elem_count() < FEW * inputs
    }

    /// The update of a layer that one node computes, if it has a single plain one.
    pub(super) fn fused<'a>(&self, xs: &Tensor, layer: &'a LinearParts) -> Option<&'a UpdateParts> {
        match &layer.updates[..] {
            [update] if update.fits(&layer.weight) && !self.is_left_to_candle(xs) => Some(update),
            _ => None,
        }
    }

    /// The blocks as the kernels read them.
    pub(super) fn kernel(&self) -> Result<quantised::Blocks<'_>> {
        quantised::Blocks::of(&self.tensor)
    }
}

/// y = x·Wᵀ + b, as [`linear`](super::linear) computes it, with a frozen weight in blocks. The result
/// has the input's dtype.
///
/// # Errors
/// If the shapes do not fit.
pub(crate) fn quantised_linear(
    xs: &Tensor,
    weight: &Blocks,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (outputs, inputs) = weight.tensor.shape().dims2()?;
    if xs.rank() == 0 || xs.dim(D::Minus1)? != inputs || !xs.dtype().is_float() {
        bail!(
            "linear: the input must be floats, and its last dimension {inputs} for a weight of shape \
             {:?}; it is {:?} of {:?}",
            weight.tensor.shape().dims(),
            xs.dims(),
            xs.dtype()
        );
    }
    check_bias(xs, bias, outputs)?;
    let span = profile::forward("quantised-linear");
    let dtype = xs.dtype();
    let rows = xs.dims()[..xs.rank() - 1].iter().product::<usize>();
    let x = working(xs)?.contiguous()?.reshape((rows, inputs))?;
    let y = forward(&x, weight, bias, weight.is_left_to_candle(xs))?.to_dtype(dtype)?;
    let mut shape = xs.dims().to_vec();
    shape[xs.rank() - 1] = outputs;
    let y = y.reshape(shape)?;
    span.end([&y].into_iter());

    let xs_shape = xs.shape().clone();
    // The node has a fixed number of arguments: an untracked one stands for a missing bias.
    let bias = bias.cloned().unwrap_or_else(|| xs.detach());
    let bias_shape = bias.shape().clone();
    let weight = weight.clone();
    record(
        "quantised-linear",
        [xs, &bias],
        y,
        move |grad, [on_xs, on_bias]| {
            let grad = working(grad)?.reshape((rows, outputs))?;
            let on_xs = on_xs.then(|| {
                let grad = backward(&grad, &weight)?;
                grad.to_dtype(dtype)?.reshape(&xs_shape)
            });
            let on_bias = on_bias.then(|| grad.sum(0)?.to_dtype(dtype)?.reshape(&bias_shape));
            Ok([on_xs.transpose()?, on_bias.transpose()?])
        },
    )
}

fn forward(x: &Tensor, weight: &Blocks, bias: Option<&Tensor>, few: bool) -> Result<Tensor> {
    let bias = bias.map(|bias| working(bias)?.contiguous()).transpose()?;
    match Compute::of(x) {
        Compute::F32 if !few => on_cpu::<f32>(x, weight, bias.as_ref()),
        Compute::F64 => on_cpu::<f64>(x, weight, bias.as_ref()),
        compute => {
            let y = match compute {
                Compute::F32 => x.apply_op1_no_bwd(weight.tensor.as_ref())?,
                _ => product(x, &in_full(weight, x)?.t()?)?,
            };
            match bias {
                Some(bias) => y.broadcast_add(&bias.flatten_all()?),
                None => Ok(y),
            }
        }
    }
}

fn backward(grad: &Tensor, weight: &Blocks) -> Result<Tensor> {
    match Compute::of(grad) {
        Compute::F32 => back_on_cpu::<f32>(grad, weight),
        Compute::F64 => back_on_cpu::<f64>(grad, weight),
        Compute::Tensors => product(grad, &in_full(weight, grad)?),
    }
}

/// The weight in full precision, as long as a product lasts: on devices for which there are no kernels.
fn in_full(weight: &Blocks, like: &Tensor) -> Result<Tensor> {
    let full = weight.tensor.dequantize(like.device())?;
    full.to_dtype(like.dtype())
}

fn on_cpu<T: Element>(x: &Tensor, weight: &Blocks, bias: Option<&Tensor>) -> Result<Tensor> {
    let weight = weight.kernel()?;
    let (rows, outputs) = (x.dim(0)?, weight.shape().0);
    let bias = bias.map(Cpu::<T>::of).transpose()?;
    let x = Cpu::<T>::of(x)?;
    let mut y = buffer(rows * outputs);
    let pass = Direction::Forward;
    let layer = LinearKernel::quantised(weight, bias.as_deref(), None, rows, pass);
    layer.forward_all(&x, &mut y, &mut []);
    tensor(y, (rows, outputs))
}

fn back_on_cpu<T: Element>(grad: &Tensor, weight: &Blocks) -> Result<Tensor> {
    let weight = weight.kernel()?;
    let (rows, inputs) = (grad.dim(0)?, weight.shape().1);
    let mut on_x = buffer::<T>(rows * inputs);
    let grad = Cpu::of(grad)?;
    weight.multiply(&mut on_x, &grad, Direction::Backward, false, Threads::All);
    tensor(on_x, (rows, inputs))
}

/// The rows of a frozen table in blocks that `ids` name: (ids.., dim), in f32.
///
/// # Errors
/// If an index is out of range or `ids` are not integers.
pub(crate) fn quantised_embedding(ids: &Tensor, table: &QTensor) -> Result<Tensor> {
    if !ids.dtype().is_int() {
        bail!(
            "embedding: indices must be integers, they are {:?}",
            ids.dtype()
        );
    }
    let span = profile::forward("embedding");
    let rows = table.embedding(ids)?;
    span.end([&rows].into_iter());
    Ok(rows)
}

//! A linear layer with DoRA, y = x·(g ⊙ (W + s·B·A))ᵀ + b, as one op. Each pass makes the weight anew: the
//! node keeps the input, x·Aᵀ and the result, from which the gradient of g comes.

use super::adapted::{LinearParts, UpdateParts};
use super::contiguous::copy;
use super::record_with_value;
use crate::kernels::adapted::{Direction, LinearKernel, UpdateKernel};
use crate::kernels::buffer::{Cpu, buffer, tensor};
use crate::kernels::dora::{Sum, scale_rows};
use crate::kernels::matrix::Matrix;
use crate::kernels::simd::Element;
use crate::kernels::sums;
use crate::profile;
use candle_core::{DType, Device, Result, Tensor};

/// A gain's gradient is divided by the gain, and so are rounding errors. A smaller gain, which no weight
/// starts with, takes the way of single ops.
const SMALLEST_GAIN: f64 = 1.0 / 64.0;

/// The norm of each output's weights in W + s·B·A, (out), where kernels compute it: of matrices of one
/// dtype in f32 or f64 on the CPU.
pub(crate) fn weight_norms(
    weight: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scaling: f64,
) -> Result<Option<Tensor>> {
    if !is_known(&[weight, a, b]) || weight.rank() != 2 || weight.elem_count() == 0 {
        return Ok(None);
    }
    fn norms<T: Element>([weight, a, b]: [&Tensor; 3], scaling: f64) -> Result<Tensor> {
        let (outputs, inputs) = weight.dims2()?;
        let scaled_b = scaled::<T>(&Cpu::of(b)?, scaling);
        let (weight, a) = (Cpu::<T>::of(weight)?, Cpu::<T>::of(a)?);
        let sum = Sum {
            weight: &weight,
            a: &a,
            scaled_b: &scaled_b,
            inputs,
        };
        tensor(sum.norms(), outputs)
    }
    let span = profile::forward("dora-norms");
    let args = [weight, a, b];
    let norms = match weight.dtype() {
        DType::F64 => norms::<f64>(args, scaling)?,
        _ => norms::<f32>(args, scaling)?,
    };
    span.end([&norms].into_iter());
    Ok(Some(norms))
}

/// Whether the kernels know these tensors.
fn is_known(tensors: &[&Tensor]) -> bool {
    let dtype = tensors[0].dtype();
    matches!(dtype, DType::F32 | DType::F64)
        && tensors.iter().all(|tensor| {
            tensor.dtype() == dtype
                && tensor.is_contiguous()
                && matches!(tensor.device(), Device::Cpu)
        })
}

/// The layer's single update and its gain, if this op computes the layer for `xs`.
pub(super) fn single<'a>(
    xs: &Tensor,
    layer: &'a LinearParts,
) -> Result<Option<(&'a UpdateParts, &'a Tensor)>> {
    let [update] = &layer.updates[..] else {
        return Ok(None);
    };
    let Some(gain) = &update.gain else {
        return Ok(None);
    };
    let (outputs, inputs) = layer.weight.dims2()?;
    let rank = update.a.dim(0)?;
    let fits = update.bias.is_none()
        && update.dropout == 0.0
        && !layer.weight.track_op()
        && outputs * inputs * rank > 0
        && xs.dtype() == layer.weight.dtype()
        && xs.device().is_cpu()
        && xs.dims().last() == Some(&inputs)
        && update.a.dims() == [rank, inputs]
        && update.b.dims() == [outputs, rank]
        && gain.dims() == [outputs]
        && is_known(&[&layer.weight, &update.a, &update.b, gain])
        && layer
            .bias
            .as_ref()
            .is_none_or(|bias| bias.dims() == [outputs] && is_known(&[&layer.weight, bias]));
    if !fits {
        return Ok(None);
    }
    let gains = gain.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let divides = |gain: &f64| gain.is_finite() && gain.abs() > SMALLEST_GAIN;
    Ok(gains.iter().all(divides).then_some((update, gain)))
}

/// The layer's result.
pub(super) fn fused<T: Element>(
    xs: &Tensor,
    layer: &LinearParts,
    (update, gain): (&UpdateParts, &Tensor),
) -> Result<Tensor> {
    let span = profile::forward("dora-linear");
    let (outputs, inputs) = layer.weight.dims2()?;
    let rows = xs.elem_count() / inputs;
    let mut shape = xs.dims().to_vec();
    shape[xs.rank() - 1] = outputs;
    let bias = layer.bias.as_ref().unwrap_or(&layer.weight);
    let args = [xs, &update.a, &update.b, gain, bias];
    let node = Node {
        x: copy(&xs.detach())?,
        layer: layer.detached(),
        gain: gain.detach(),
        rows,
    };
    let rank = update.a.dim(0)?;
    let kept = match args.iter().any(|arg| arg.track_op()) {
        true => rows * rank,
        false => 0,
    };
    let (mut y, mut t) = (buffer::<T>(rows * outputs), buffer::<T>(kept));
    node.run(Direction::Forward, |kernel, x| {
        kernel.forward_all(x, &mut y, &mut t);
    })?;
    let y = tensor(y, shape)?;
    span.end([&y].into_iter());
    record_with_value("dora-linear", args, y, move |grad, y, wanted| {
        node.backward::<T>(grad, y, &t, wanted)
    })
}

/// What the layer's node keeps beside x·Aᵀ.
struct Node {
    x: Tensor,
    layer: LinearParts,
    gain: Tensor,
    rows: usize,
}

impl Node {
    /// Calls `f` with the layer as a plain one of weight g ⊙ (W + s·B·A) that has the update A, g ⊙ B in
    /// it, and with x.
    fn run<T: Element, R>(
        &self,
        pass: Direction,
        f: impl FnOnce(&LinearKernel<'_, T>, &[T]) -> R,
    ) -> Result<R> {
        let LinearParts {
            weight,
            bias,
            updates,
            ..
        } = &self.layer;
        let update = &updates[0];
        let (outputs, inputs) = weight.dims2()?;
        let rank = update.a.dim(0)?;
        let (x, gain) = (Cpu::<T>::of(&self.x)?, Cpu::<T>::of(&self.gain)?);
        let (weight, a, b) = (
            Cpu::<T>::of(weight)?,
            Cpu::<T>::of(&update.a)?,
            Cpu::<T>::of(&update.b)?,
        );
        let bias = bias.as_ref().map(Cpu::<T>::of).transpose()?;
        let sum = Sum {
            weight: &weight,
            a: &a,
            scaled_b: &scaled(&b, update.scaling),
            inputs,
        };
        let weight = sum.scaled(&gain);
        let mut b = b.to_vec();
        scale_rows(&mut b, &gain, rank);
        let update = UpdateKernel {
            a: &a,
            b: &b,
            rank,
            scaling: update.scaling,
            dropout: None,
        };
        let weight = Matrix::new(&weight, outputs, inputs);
        let kernel = LinearKernel::merged(weight, bias.as_deref(), update, self.rows, pass);
        Ok(f(&kernel, &x))
    }

    /// The gradients of x, A, B, the gain and the bias.
    fn backward<T: Element>(
        &self,
        grad: &Tensor,
        y: &Tensor,
        t: &[T],
        [on_xs, on_a, on_b, on_gain, on_bias]: [bool; 5],
    ) -> Result<[Option<Tensor>; 5]> {
        let update = &self.layer.updates[0];
        let (outputs, rank) = update.b.dims2()?;
        let grad = copy(&grad.detach())?;
        let grad = Cpu::<T>::of(&grad)?;
        let mut on_x = on_xs.then(|| buffer::<T>(self.x.elem_count()));
        let grads = self.run(Direction::Backward, |kernel, x| {
            kernel.backward_all(&grad, x, t, on_x.as_deref_mut(), on_a || on_b)
        })?;
        let gain = Cpu::<T>::of(&self.gain)?;
        let (mut a, mut b) = (None, None);
        if let Some(grads) = grads {
            let (of_a, mut of_b) = grads.finish(rank, update.scaling);
            scale_rows(&mut of_b, &gain, rank);
            a = Some(tensor(of_a, update.a.shape())?);
            b = Some(tensor(of_b, update.b.shape())?);
        }
        let (mut of_gain, mut of_bias) = (None, None);
        if on_gain || on_bias {
            // The result without the bias is the gain times that without the gain.
            let y = copy(&y.detach())?;
            let (mut along, totals) = sums::columns(&Cpu::<T>::of(&y)?, &grad, None, outputs);
            if let Some(bias) = &self.layer.bias {
                let bias = Cpu::<T>::of(bias)?;
                let of_bias = bias.iter().zip(&totals);
                along
                    .iter_mut()
                    .zip(of_bias)
                    .for_each(|(along, (&bias, &total))| *along -= bias * total);
            }
            along
                .iter_mut()
                .zip(gain.iter())
                .for_each(|(along, &gain)| *along /= gain);
            of_gain = on_gain.then(|| tensor(along, outputs)).transpose()?;
            of_bias = on_bias.then(|| tensor(totals, outputs)).transpose()?;
        }
        let on_x = on_x.map(|on_x| tensor(on_x, self.x.shape())).transpose()?;
        Ok([on_x, a, b, of_gain, of_bias])
    }
}

/// s·values
fn scaled<T: Element>(values: &[T], scaling: f64) -> Vec<T> {
    let scaling = T::of(scaling);
    values.iter().map(|&value| value * scaling).collect()
}

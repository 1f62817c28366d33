//! A residual MLP as one op: shortcut + gamma·fc2(act(fc1(norm(x)))).

use super::adapted::{LinearParts, Operands, adapted_linear};
use super::contiguous::copy;
use super::{
    Compute, affine, dropout, gelu, gelu_erf, norm, record, relu, residual, silu, working,
};
use crate::kernels::activation::{Function, GeluErf, GeluTanh, Relu, Silu};
use crate::kernels::adapted::Direction;
use crate::kernels::buffer::{Cpu, buffer, tensor};
use crate::kernels::dropout::Dropout;
use crate::kernels::mlp::{self, Grads, Keep, Kept};
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Activation, Module};
use std::marker::PhantomData;

/// A normalisation over the last dimension, as the ops read it.
#[derive(Clone, Debug)]
pub struct NormParts {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) eps: f64,
    pub(crate) remove_mean: bool,
}

/// The parts of the block.
#[derive(Clone, Debug)]
pub(crate) struct MlpParts {
    pub(crate) norm: Option<NormParts>,
    pub(crate) fc1: LinearParts,
    pub(crate) act: Activation,
    pub(crate) fc2: LinearParts,
    pub(crate) gamma: Option<Tensor>,
    /// Compute the hidden values anew in the backward pass.
    pub(crate) recompute: bool,
}

/// The block's result for `xs` of shape (.., in), with a shortcut of the result's shape. It is one
/// node where the kernel knows the parts, else one node for each part.
pub(crate) fn residual_mlp(
    xs: &Tensor,
    shortcut: Option<&Tensor>,
    parts: &MlpParts,
) -> Result<Tensor> {
    if !parts.fit(xs, shortcut) {
        return composed(xs, shortcut, parts);
    }
    match parts.act {
        Activation::Gelu => with::<GeluErf>(xs, shortcut, parts),
        Activation::NewGelu | Activation::GeluPytorchTanh => with::<GeluTanh>(xs, shortcut, parts),
        Activation::Relu => with::<Relu>(xs, shortcut, parts),
        Activation::Silu => with::<Silu>(xs, shortcut, parts),
        _ => composed(xs, shortcut, parts),
    }
}

/// The block with this activation, in the precision to compute in.
fn with<F: Function + 'static>(
    xs: &Tensor,
    shortcut: Option<&Tensor>,
    parts: &MlpParts,
) -> Result<Tensor> {
    match Compute::of(xs) {
        Compute::F32 => fused::<f32, F>(xs, shortcut, parts),
        Compute::F64 => fused::<f64, F>(xs, shortcut, parts),
        Compute::Tensors => composed(xs, shortcut, parts),
    }
}

impl MlpParts {
    /// Whether the fused op computes this: everything frozen but the updates, one dtype, shapes
    /// that belong together. The single ops report whatever does not fit, so that each error has
    /// one text.
    fn fit(&self, xs: &Tensor, shortcut: Option<&Tensor>) -> bool {
        let (fc1, fc2) = (&self.fc1.weight, &self.fc2.weight);
        let (Ok((hidden, width)), Ok((outputs, inner))) = (fc1.dims2(), fc2.dims2()) else {
            return false;
        };
        let vector = |tensor: Option<&Tensor>, count: usize| {
            tensor.is_none_or(|tensor| {
                tensor.dims() == [count]
                    && tensor.dtype() == xs.dtype()
                    && !tensor.track_op()
                    && tensor.is_contiguous()
            })
        };
        let norm = self.norm.as_ref();
        let dims = xs.dims();
        matches!(
            xs.dtype(),
            DType::BF16 | DType::F16 | DType::F32 | DType::F64
        ) && fc1.dtype() == xs.dtype()
            && fc2.dtype() == xs.dtype()
            && dims.last() == Some(&width)
            && width > 0
            && outputs > 0
            && inner == hidden
            && self.fc1.fused().is_ok()
            && self.fc2.fused().is_ok()
            && vector(self.fc1.bias.as_ref(), hidden)
            && vector(self.fc2.bias.as_ref(), outputs)
            && vector(norm.map(|norm| &norm.weight), width)
            && vector(norm.and_then(|norm| norm.bias.as_ref()), width)
            && vector(self.gamma.as_ref(), outputs)
            && shortcut.is_none_or(|shortcut| {
                let (last, rest) = (shortcut.dims().last(), shortcut.rank().saturating_sub(1));
                shortcut.dtype() == xs.dtype()
                    && shortcut.rank() == dims.len()
                    && last == Some(&outputs)
                    && shortcut.dims()[..rest] == dims[..rest]
            })
    }
}

fn composed(xs: &Tensor, shortcut: Option<&Tensor>, parts: &MlpParts) -> Result<Tensor> {
    let normed = match &parts.norm {
        Some(NormParts {
            weight,
            bias,
            eps,
            remove_mean,
        }) => norm(xs, weight, bias.as_ref(), *eps, *remove_mean)?,
        None => xs.clone(),
    };
    let hidden = activate(&adapted_linear(&normed, &parts.fc1)?, parts.act)?;
    let y = adapted_linear(&hidden, &parts.fc2)?;
    let last = y.rank().saturating_sub(1);
    match (shortcut, &parts.gamma) {
        (Some(shortcut), gamma) => residual(shortcut, &y, gamma.as_ref(), last),
        (None, Some(gamma)) => affine(&y, gamma, None, last),
        (None, None) => Ok(y),
    }
}

/// The activation with PyTorch's derivative.
pub(crate) fn activate(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Gelu => gelu_erf(xs),
        Activation::NewGelu | Activation::GeluPytorchTanh => gelu(xs),
        Activation::Relu => relu(xs),
        Activation::Silu => silu(xs),
        other => other.forward(xs),
    }
}

fn fused<T: Element, F: Function + 'static>(
    xs: &Tensor,
    shortcut: Option<&Tensor>,
    parts: &MlpParts,
) -> Result<Tensor> {
    let span = profile::forward("mlp");
    let (update1, update2) = (parts.fc1.update(), parts.fc2.update());
    let absent = &parts.fc1.weight;
    let args = [
        xs,
        shortcut.unwrap_or(absent),
        update1.map_or(absent, |update| &update.a),
        update1.map_or(absent, |update| &update.b),
        update2.map_or(absent, |update| &update.a),
        update2.map_or(absent, |update| &update.b),
    ];
    let keep = match args.iter().any(|arg| arg.track_op()) {
        false => Keep::Nothing,
        true if parts.recompute => Keep::Little,
        true => Keep::Hidden,
    };
    let outputs = parts.fc2.weight.dim(0)?;
    let xs_shape = xs.shape().clone();
    let mut shape = xs.dims().to_vec();
    shape[xs.rank() - 1] = outputs;
    let rows = xs.elem_count() / xs.dim(D::Minus1)?;
    let block = Block::<F> {
        x: copy(&xs.detach())?,
        parts: parts.detached(),
        masks: [&parts.fc1, &parts.fc2]
            .map(|layer| layer.update().and_then(|u| dropout::mask(u.dropout))),
        rows,
        act: PhantomData,
    };
    let shortcut = shortcut.map(|shortcut| working(&copy(&shortcut.detach())?));
    let mut y = buffer::<T>(rows * outputs);
    let kept = {
        let shortcut = shortcut.transpose()?;
        let shortcut = shortcut.as_ref().map(Cpu::<T>::of).transpose()?;
        block.run(Direction::Forward, |mlp, x| {
            mlp.forward(x, shortcut.as_deref(), &mut y, keep)
        })?
    };
    let dtype = xs.dtype();
    let y = tensor(y, shape)?.to_dtype(dtype)?;
    span.end([&y].into_iter());
    record("mlp", args, y, move |grad, [on_xs, on_shortcut, ..]| {
        let (on_x, [a1, b1, a2, b2]) = block.backward::<T>(grad, &kept, on_xs)?;
        let on_x = on_x.map(|on_x| tensor(on_x, &xs_shape)?.to_dtype(dtype));
        let on_x = on_x.transpose()?;
        let on_shortcut = on_shortcut.then(|| grad.clone());
        Ok([on_x, on_shortcut, a1, b1, a2, b2])
    })
}

impl MlpParts {
    /// The same block without its graph.
    fn detached(&self) -> Self {
        Self {
            fc1: self.fc1.detached(),
            fc2: self.fc2.detached(),
            ..self.clone()
        }
    }

    /// The same block in the precision to compute in.
    fn working(&self) -> Result<Self> {
        let norm = self.norm.as_ref().map(|norm| {
            Ok::<_, candle_core::Error>(NormParts {
                weight: working(&norm.weight)?,
                bias: norm.bias.as_ref().map(working).transpose()?,
                ..*norm
            })
        });
        Ok(Self {
            norm: norm.transpose()?,
            fc1: self.fc1.working()?,
            fc2: self.fc2.working()?,
            gamma: self.gamma.as_ref().map(working).transpose()?,
            ..self.clone()
        })
    }
}

/// What the block's node keeps: its input, the frozen parts and the values of the updates.
struct Block<F> {
    x: Tensor,
    parts: MlpParts,
    masks: [Option<Dropout>; 2],
    rows: usize,
    act: PhantomData<F>,
}

type InputAndUpdates<T> = (Option<Vec<T>>, [Option<Tensor>; 4]);

impl<F: Function> Block<F> {
    /// Calls `f` with the block as slices, and x.
    fn run<T: Element, R>(
        &self,
        pass: Direction,
        f: impl FnOnce(&mlp::Mlp<'_, T, F>, &[T]) -> R,
    ) -> Result<R> {
        let (x, parts) = (working(&self.x)?, self.parts.working()?);
        let (fc1, fc2) = (
            Operands::<T>::of(&parts.fc1)?,
            Operands::<T>::of(&parts.fc2)?,
        );
        let vector = |tensor: Option<&Tensor>| -> Result<Option<Vec<T>>> {
            Ok(match tensor {
                Some(tensor) => Some(Cpu::<T>::of(tensor)?.to_vec()),
                None => None,
            })
        };
        let weight = vector(parts.norm.as_ref().map(|norm| &norm.weight))?;
        let bias = vector(parts.norm.as_ref().and_then(|norm| norm.bias.as_ref()))?;
        let gamma = vector(parts.gamma.as_ref())?;
        let norm = parts.norm.as_ref().zip(weight.as_deref());
        let norm = norm.map(|(norm, weight)| mlp::Norm {
            weight,
            bias: bias.as_deref(),
            eps: norm.eps,
            remove_mean: norm.remove_mean,
        });
        let x = Cpu::<T>::of(&x)?;
        let mlp = mlp::Mlp {
            norm,
            fc1: fc1.layer(self.masks[0], self.rows, pass),
            act: PhantomData,
            fc2: fc2.layer(self.masks[1], self.rows, pass),
            gamma: gamma.as_deref(),
        };
        Ok(f(&mlp, &x))
    }

    fn backward<T: Element>(
        &self,
        grad: &Tensor,
        kept: &Kept<T>,
        on_xs: bool,
    ) -> Result<InputAndUpdates<T>> {
        let mut on_x = on_xs.then(|| buffer(self.x.elem_count()));
        let grad = working(grad)?;
        let grad = Cpu::<T>::of(&grad)?;
        let Grads { fc1, fc2 } = self.run(Direction::Backward, |mlp, x| {
            mlp.backward(x, &grad, kept, on_x.as_deref_mut())
        })?;
        let mut on_updates = [None, None, None, None];
        for (layer, (parts, grads)) in [(&self.parts.fc1, fc1), (&self.parts.fc2, fc2)]
            .into_iter()
            .enumerate()
        {
            if let (Some(update), Some(grads)) = (parts.update(), grads) {
                let (a, b) = grads.finish(update.a.dim(0)?, update.scaling);
                on_updates[2 * layer] = Some(tensor(a, update.a.shape())?);
                on_updates[2 * layer + 1] = Some(tensor(b, update.b.shape())?);
            }
        }
        Ok((on_x, on_updates))
    }
}

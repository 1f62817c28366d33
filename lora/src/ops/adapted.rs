//! A linear layer with low-rank updates: y = x·Wᵀ + b + s·drop(x)·Aᵀ·Bᵀ.

use super::contiguous::copy;
use super::dropout::{drop_values, mask};
use super::quantised::{Blocks, quantised_linear};
use super::{Compute, affine, dora, linear, record, wider, working};
use crate::kernels::adapted::{Direction, LinearKernel, UpdateGrads, UpdateKernel};
use crate::kernels::buffer::{Cpu, CpuMatrix, buffer, tensor};
use crate::kernels::dropout::Dropout;
use crate::kernels::quantised;
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{DType, Result, Tensor, bail};
use std::fmt::Debug;
use std::sync::Arc;

/// A linear layer as the ops read it. Whether a part is frozen or tracked, its tensor tells.
#[derive(Clone, Debug)]
pub struct LinearParts {
    /// (out, in)
    pub(crate) weight: Tensor,
    /// The weight's values, where they are quantised; `weight` then only says shape and dtype.
    pub(crate) blocks: Option<Blocks>,
    /// (out)
    pub(crate) bias: Option<Tensor>,
    pub(crate) updates: Vec<UpdateParts>,
    /// Replaces the forward pass of the ops.
    pub(crate) detour: Option<Arc<dyn Detour>>,
}

/// A forward pass that replaces the ops' own, for a layer that does more than the ops know.
pub(crate) trait Detour: Debug + Send + Sync {
    /// The layer's result for `xs`.
    fn forward(&self, xs: &Tensor, layer: &LinearParts) -> Result<Tensor>;
}

/// A low-rank update of a layer.
#[derive(Clone, Debug)]
pub struct UpdateParts {
    /// (r, in)
    pub(crate) a: Tensor,
    /// (out, r)
    pub(crate) b: Tensor,
    /// The bias of B, (out).
    pub(crate) bias: Option<Tensor>,
    /// The factor on the output without the layer's own bias, (out): DoRA's m / ‖V‖.
    pub(crate) gain: Option<Tensor>,
    pub(crate) scaling: f64,
    /// Probability that an input is dropped, 0 in eval mode.
    pub(crate) dropout: f64,
}

impl LinearParts {
    /// The single update that the fused ops can compute, or `None` without updates; `Err` where the
    /// fused ops cannot compute this layer.
    pub(crate) fn fused(&self) -> std::result::Result<Option<&UpdateParts>, ()> {
        let frozen = !self.weight.track_op();
        match &self.updates[..] {
            _ if self.detour.is_some() || self.blocks.is_some() => Err(()),
            [] if frozen => Ok(None),
            [update] if frozen && update.fits(&self.weight) => Ok(Some(update)),
            _ => Err(()),
        }
    }
}

impl LinearParts {
    /// Whether the weight is in blocks, and the kernels compute all of the layer: at most one plain update,
    /// and nothing tracked beside it.
    pub(super) fn is_plain_in_blocks(&self, xs: &Tensor) -> bool {
        self.detour.is_none()
            && self.blocks.is_some()
            && self.weight.dtype() == xs.dtype()
            && self.bias.as_ref().is_none_or(|bias| {
                bias.dtype() == xs.dtype() && bias.is_contiguous() && !bias.track_op()
            })
            && match &self.updates[..] {
                [] => true,
                [update] => update.fits(&self.weight),
                _ => false,
            }
    }

    /// The layer with one op for its own product, `base`, and one op for each factor of each
    /// update: any dtype, device and number of updates.
    pub(crate) fn composed(
        &self,
        xs: &Tensor,
        base: impl Fn(&Tensor, Option<&Tensor>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let layer = Updated {
            bias: self.bias.as_ref(),
            updates: &self.updates,
            channels: xs.rank().saturating_sub(1),
        };
        layer.run(xs, base, |xs, update| {
            let inner = linear(xs, &update.a, None)?;
            linear(&inner, &update.b, update.bias.as_ref())
        })
    }

    /// The layer's own product with this bias.
    pub(crate) fn product(&self, xs: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match &self.blocks {
            Some(blocks) => quantised_linear(xs, blocks, bias),
            None => linear(xs, &self.weight, bias),
        }
    }

    /// True for a layer without updates, whatever its weight is held in.
    pub(crate) fn is_bare(&self) -> bool {
        self.updates.is_empty() && self.detour.is_none()
    }

    /// The first update, for a layer that is [`fused`](Self::fused).
    pub(crate) fn update(&self) -> Option<&UpdateParts> {
        self.updates.first()
    }

    /// The layer of some of the outputs, for a layer that is [`fused`](Self::fused): a detour and blocks
    /// know all of them only.
    pub(crate) fn outputs(&self, start: usize, count: usize) -> Result<Self> {
        let part = |tensor: &Tensor| tensor.narrow(0, start, count);
        let update = |update: &UpdateParts| {
            Ok(UpdateParts {
                a: update.a.clone(),
                b: part(&update.b)?,
                bias: update.bias.as_ref().map(part).transpose()?,
                gain: update.gain.as_ref().map(part).transpose()?,
                ..*update
            })
        };
        Ok(Self {
            weight: part(&self.weight)?,
            blocks: self.blocks.clone(),
            bias: self.bias.as_ref().map(part).transpose()?,
            updates: self.updates.iter().map(update).collect::<Result<_>>()?,
            detour: self.detour.clone(),
        })
    }

    /// The same layer without its graph.
    pub(crate) fn detached(&self) -> Self {
        let update = |update: &UpdateParts| UpdateParts {
            a: update.a.detach(),
            b: update.b.detach(),
            bias: update.bias.as_ref().map(Tensor::detach),
            gain: update.gain.as_ref().map(Tensor::detach),
            ..*update
        };
        Self {
            weight: self.weight.detach(),
            blocks: self.blocks.clone(),
            bias: self.bias.as_ref().map(Tensor::detach),
            updates: self.updates.iter().map(update).collect(),
            detour: None,
        }
    }

    /// The same layer in the precision to compute in.
    pub(crate) fn working(&self) -> Result<Self> {
        Ok(Self {
            weight: match self.blocks {
                Some(_) => self.weight.clone(),
                None => working(&self.weight)?,
            },
            blocks: self.blocks.clone(),
            bias: self.bias.as_ref().map(working).transpose()?,
            updates: self.updates.clone(),
            detour: None,
        })
    }
}

impl UpdateParts {
    /// Whether the update is a plain one in the precision that the kernels compute with. On a half
    /// base that is f32.
    pub(super) fn fits(&self, weight: &Tensor) -> bool {
        if self.bias.is_some() || self.gain.is_some() {
            return false;
        }
        let precision = match weight.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let same = |tensor: &Tensor| {
            tensor.dtype() == precision && tensor.device().same_device(weight.device())
        };
        let known = matches!(
            weight.dtype(),
            DType::BF16 | DType::F16 | DType::F32 | DType::F64
        );
        known && same(&self.a) && same(&self.b) && self.a.is_contiguous() && self.b.is_contiguous()
    }
}

/// The layer's result for `xs` of shape (.., in): (.., out).
pub(crate) fn adapted_linear(xs: &Tensor, layer: &LinearParts) -> Result<Tensor> {
    if let Some(detour) = &layer.detour {
        return detour.forward(xs, layer);
    }
    if let Some(single) = dora::single(xs, layer)? {
        return match xs.dtype() {
            DType::F64 => dora::fused::<f64>(xs, layer, single),
            _ => dora::fused::<f32>(xs, layer, single),
        };
    }
    let compute = Compute::of(xs);
    let (outputs, inputs) = layer.weight.dims2()?;
    // The single ops report whatever does not fit, so that each error has one text.
    let fits = inputs * outputs > 0
        && xs.dims().last() == Some(&inputs)
        && xs.dtype() == layer.weight.dtype()
        && layer.bias.as_ref().is_none_or(|bias| {
            bias.dims() == [outputs] && bias.dtype() == xs.dtype() && bias.is_contiguous()
        });
    let update = match &layer.blocks {
        Some(blocks) => blocks.fused(xs, layer),
        None => layer.fused().ok().flatten(),
    };
    match (compute, update) {
        (Compute::F32, Some(update)) if fits => fused::<f32>(xs, layer, update),
        (Compute::F64, Some(update)) if fits => fused::<f64>(xs, layer, update),
        _ => layer.composed(xs, |xs, bias| layer.product(xs, bias)),
    }
}

/// A layer's bias and updates, with the dimension of its output that they act along.
pub(crate) struct Updated<'a> {
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) updates: &'a [UpdateParts],
    pub(crate) channels: usize,
}

impl Updated<'_> {
    /// The layer's result. The updates act in order, as in PEFT: a plain update adds s·B·A·x;
    /// DoRA's adds s·B·A·x too, and then multiplies the sum, without the layer's bias, by its gain.
    ///
    /// `base` computes the layer's own product with this bias, `branch` an update without its
    /// scaling. The input is cast to the update's dtype. The sum is taken in the wider of both
    /// dtypes and cast back.
    pub(crate) fn run(
        &self,
        xs: &Tensor,
        base: impl Fn(&Tensor, Option<&Tensor>) -> Result<Tensor>,
        branch: impl Fn(&Tensor, &UpdateParts) -> Result<Tensor>,
    ) -> Result<Tensor> {
        // A gain must not scale the layer's bias, so the bias comes last.
        let gains = self.updates.iter().any(|update| update.gain.is_some());
        let mut sum = base(xs, self.bias.filter(|_| !gains))?;
        let dtype = sum.dtype();
        for update in self.updates {
            let mut input = xs.clone();
            // An embedding's indices are neither cast nor dropped.
            if xs.dtype().is_float() {
                input = drop_values(&xs.to_dtype(update.a.dtype())?, update.dropout)?;
            }
            let added = (branch(&input, update)? * update.scaling)?;
            let wide = wider(sum.dtype(), added.dtype());
            let (before, added) = (sum.to_dtype(wide)?, added.to_dtype(wide)?);
            sum = match &update.gain {
                None => (before + added)?,
                Some(gain) => {
                    let gain = gain.to_dtype(wide)?;
                    if xs.dtype().is_float() && update.dropout > 0.0 {
                        // As in PEFT, the gain acts on the dropped input: y + (g − 1)·W·drop(x).
                        let dropped = base(&input.to_dtype(xs.dtype())?, None)?.to_dtype(wide)?;
                        let scaled = affine(&(&dropped + added)?, &gain, None, self.channels)?;
                        ((before + scaled)? - dropped)?
                    } else {
                        affine(&(before + added)?, &gain, None, self.channels)?
                    }
                }
            };
        }
        if let Some(bias) = self.bias.filter(|_| gains) {
            let mut shape = vec![1; sum.rank()];
            shape[self.channels] = bias.elem_count();
            sum = sum.broadcast_add(&bias.to_dtype(sum.dtype())?.reshape(shape)?)?;
        }
        sum.to_dtype(dtype)
    }
}

/// The whole layer as one op. It keeps x, and for each row the r numbers between A and B.
fn fused<T: Element>(xs: &Tensor, layer: &LinearParts, update: &UpdateParts) -> Result<Tensor> {
    let (outputs, inputs) = layer.weight.dims2()?;
    if update.a.dims() != [update.b.dim(1)?, inputs] || update.b.dim(0)? != outputs {
        bail!(
            "lora: A of shape {:?} and B of shape {:?} do not fit a weight of shape {:?}",
            update.a.dims(),
            update.b.dims(),
            layer.weight.dims()
        );
    }
    let span = profile::forward("lora-linear");
    let mut shape = xs.dims().to_vec();
    let xs_shape = xs.shape().clone();
    shape[xs.rank() - 1] = outputs;
    let rows = xs.elem_count() / inputs;
    let x = copy(&xs.detach())?;
    let frozen = Frozen {
        layer: layer.detached(),
        mask: mask(update.dropout),
        rows,
    };
    let bias = layer.bias.as_ref().unwrap_or(&frozen.layer.weight);
    let args = [xs, &update.a, &update.b, bias];
    let tracked = args.iter().any(|arg| arg.track_op());
    let (y, t) = frozen.forward::<T>(&x, tracked)?;
    let dtype = xs.dtype();
    let y = tensor(y, shape)?.to_dtype(dtype)?;
    span.end([&y].into_iter());
    let bias = bias.clone();
    let args = [xs, &update.a, &update.b, &bias];
    let (a_shape, b_shape) = (update.a.shape().clone(), update.b.shape().clone());
    let scaling = update.scaling;
    record(
        "lora-linear",
        args,
        y,
        move |grad, [on_xs, on_a, on_b, on_bias]| {
            let grad = working(grad)?;
            let (on_x, grads) = frozen.backward::<T>(&x, &grad, &t, on_xs, on_a || on_b)?;
            let on_x = on_x.map(|on_x| tensor(on_x, &xs_shape)?.to_dtype(dtype));
            let (mut a, mut b) = (None, None);
            if let Some(grads) = grads {
                let (of_a, of_b) = grads.finish(a_shape.dims()[0], scaling);
                (a, b) = (Some(tensor(of_a, &a_shape)?), Some(tensor(of_b, &b_shape)?));
            }
            let on_bias = on_bias.then(|| grad.reshape((rows, outputs))?.sum(0)?.to_dtype(dtype));
            Ok([on_x.transpose()?, a, b, on_bias.transpose()?])
        },
    )
}

/// What a layer's node keeps beside its input.
pub(super) struct Frozen {
    pub(super) layer: LinearParts,
    pub(super) mask: Option<Dropout>,
    pub(super) rows: usize,
}

/// The gradients of the input and of the update.
type InputAndUpdate<T> = (Option<Vec<T>>, Option<UpdateGrads<T>>);

impl Frozen {
    /// The result, and t = drop(x)·Aᵀ of every row if it is to be `kept`.
    pub(super) fn forward<T: Element>(&self, x: &Tensor, kept: bool) -> Result<(Vec<T>, Vec<T>)> {
        let (layer, x) = (self.layer.working()?, working(x)?);
        let (operands, x) = (Operands::<T>::of(&layer)?, Cpu::<T>::of(&x)?);
        let layer = operands.layer(self.mask, self.rows, Direction::Forward);
        let mut y = buffer(self.rows * layer.outputs);
        let mut t = buffer(if kept { self.rows * layer.rank() } else { 0 });
        layer.forward_all(&x, &mut y, &mut t);
        Ok((y, t))
    }

    /// The gradients of the input and of the update, each only where it is wanted.
    pub(super) fn backward<T: Element>(
        &self,
        x: &Tensor,
        grad: &Tensor,
        t: &[T],
        on_x: bool,
        on_update: bool,
    ) -> Result<InputAndUpdate<T>> {
        let (layer, x) = (self.layer.working()?, working(x)?);
        let (operands, x) = (Operands::<T>::of(&layer)?, Cpu::<T>::of(&x)?);
        let layer = operands.layer(self.mask, self.rows, Direction::Backward);
        let grad = Cpu::<T>::of(grad)?;
        let mut of_x = on_x.then(|| buffer(self.rows * layer.inputs));
        let grads = layer.backward_all(&grad, &x, t, of_x.as_deref_mut(), on_update);
        Ok((of_x, grads))
    }
}

/// A weight's values, borrowed.
enum Values<'a, T> {
    Full(CpuMatrix<'a, T>),
    Quantised(quantised::Blocks<'a>),
}

/// A layer's tensors, borrowed.
pub(crate) struct Operands<'a, T> {
    weight: Values<'a, T>,
    bias: Option<Cpu<'a, T>>,
    update: Option<(&'a UpdateParts, Cpu<'a, T>, Cpu<'a, T>)>,
}

impl<'a, T: Element> Operands<'a, T> {
    pub(crate) fn of(layer: &'a LinearParts) -> Result<Self> {
        let update = match layer.update() {
            Some(update) => Some((update, Cpu::of(&update.a)?, Cpu::of(&update.b)?)),
            None => None,
        };
        Ok(Self {
            weight: match &layer.blocks {
                Some(blocks) => Values::Quantised(blocks.kernel()?),
                None => Values::Full(CpuMatrix::of(&layer.weight)?),
            },
            bias: layer.bias.as_ref().map(Cpu::of).transpose()?,
            update,
        })
    }

    pub(crate) fn layer(
        &self,
        mask: Option<Dropout>,
        rows: usize,
        pass: Direction,
    ) -> LinearKernel<'_, T> {
        let update = self.update.as_ref().map(|(parts, a, b)| UpdateKernel {
            a,
            b,
            rank: parts.a.dims()[0],
            scaling: parts.scaling,
            dropout: mask,
        });
        let bias = self.bias.as_deref();
        match &self.weight {
            Values::Full(weight) => LinearKernel::new(weight.view(), bias, update, rows, pass),
            Values::Quantised(blocks) => {
                LinearKernel::quantised(blocks.clone(), bias, update, rows, pass)
            }
        }
    }
}

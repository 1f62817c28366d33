//! A gated MLP over quantised layers as one node: down(act(gate(x))·up(x)).
//!
//! The node keeps its input and up's outputs, and the backward pass computes gate's anew. Beside weights
//! in blocks both would be most of a step's memory, and a product more takes little time.

use super::adapted::{Frozen, LinearParts};
use super::contiguous::copy;
use super::{Compute, dropout, record_all, working};
use crate::kernels::activation::{Function, GeluErf, GeluTanh, Relu, Silu};
use crate::kernels::adapted::UpdateGrads;
use crate::kernels::buffer::{buffer, tensor};
use crate::kernels::gate;
use crate::kernels::matrix::Threads;
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{D, Result, Tensor};
use candle_nn::Activation;
use std::borrow::Cow;
use std::marker::PhantomData;

/// The layers.
#[derive(Clone, Debug)]
pub(super) struct Gated<'a> {
    pub(super) gate: &'a LinearParts,
    pub(super) up: &'a LinearParts,
    pub(super) down: &'a LinearParts,
    pub(super) act: Activation,
    /// Compute up's outputs anew as well.
    pub(super) recompute: bool,
}

impl Gated<'_> {
    /// The result for `xs` of shape (.., in), where one node can compute it and a gradient is wanted.
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Option<Tensor>> {
        match (self.act, Compute::of(xs)) {
            (Activation::Silu, compute) => self.with::<Silu>(xs, compute),
            (Activation::Gelu, compute) => self.with::<GeluErf>(xs, compute),
            (Activation::NewGelu | Activation::GeluPytorchTanh, compute) => {
                self.with::<GeluTanh>(xs, compute)
            }
            (Activation::Relu, compute) => self.with::<Relu>(xs, compute),
            _ => Ok(None),
        }
    }

    fn with<F: Function + 'static>(&self, xs: &Tensor, compute: Compute) -> Result<Option<Tensor>> {
        match compute {
            _ if !self.fits(xs) => Ok(None),
            Compute::F32 => self.node::<f32, F>(xs).map(Some),
            Compute::F64 => self.node::<f64, F>(xs).map(Some),
            Compute::Tensors => Ok(None),
        }
    }

    fn layers(&self) -> [&LinearParts; 3] {
        [self.gate, self.up, self.down]
    }

    /// Whether the kernels know all parts. Single nodes compute any others, and report what does not fit.
    fn fits(&self, xs: &Tensor) -> bool {
        let (Ok((hidden, width)), Ok((_, inner))) =
            (self.gate.weight.dims2(), self.down.weight.dims2())
        else {
            return false;
        };
        let is_tracked = |layer: &LinearParts| {
            let update = layer.update();
            update.is_some_and(|update| update.a.track_op() || update.b.track_op())
        };
        xs.dims().last() == Some(&width)
            && self.up.weight.dims() == [hidden, width]
            && inner == hidden
            && self
                .layers()
                .iter()
                .all(|layer| layer.is_plain_in_blocks(xs))
            && (xs.track_op() || self.layers().into_iter().any(is_tracked))
    }

    fn node<T: Element, F: Function + 'static>(&self, xs: &Tensor) -> Result<Tensor> {
        let span = profile::forward("gated-mlp");
        let rows = xs.elem_count() / xs.dim(D::Minus1)?.max(1);
        let [gate, up, down] = self.layers().map(|layer| Frozen {
            layer: layer.detached(),
            mask: layer
                .update()
                .and_then(|update| dropout::mask(update.dropout)),
            rows,
        });
        let mut node = Node::<T, F> {
            x: copy(&xs.detach())?,
            layers: [gate, up, down],
            t: Default::default(),
            of_up: None,
            act: PhantomData,
        };
        let (dtype, xs_shape) = (xs.dtype(), xs.shape().clone());
        let mut shape = xs.dims().to_vec();
        shape[xs.rank() - 1] = self.down.weight.dim(0)?;
        let y = tensor(node.forward(!self.recompute)?, shape)?.to_dtype(dtype)?;
        span.end([&y].into_iter());
        let updates = self.layers().map(LinearParts::update);
        let pairs = updates.iter().flatten();
        let args: Vec<&Tensor> = [xs]
            .into_iter()
            .chain(pairs.flat_map(|update| [&update.a, &update.b]))
            .collect();
        let on_xs = xs.track_op();
        record_all("gated-mlp", &args, y, move |grad| {
            let (on_x, grads) = node.backward(grad)?;
            let on_x = on_xs.then(|| tensor(on_x, &xs_shape)?.to_dtype(dtype));
            let mut all = vec![on_x.transpose()?];
            for (layer, grads) in node.layers.iter().zip(grads) {
                if let (Some(update), Some(grads)) = (layer.layer.update(), grads) {
                    let (a, b) = grads.finish(update.a.dim(0)?, update.scaling);
                    all.push(Some(tensor(a, update.a.shape())?));
                    all.push(Some(tensor(b, update.b.shape())?));
                }
            }
            Ok(all)
        })
    }
}

/// What the node keeps: its input, the frozen parts, the few numbers between each A and B, and up's
/// outputs where they are not computed anew.
struct Node<T: Element, F> {
    x: Tensor,
    layers: [Frozen; 3],
    t: [Vec<T>; 3],
    of_up: Option<Vec<T>>,
    act: PhantomData<F>,
}

/// The gradients of the input, and of the updates of gate, up and down.
type Grads<T> = (Vec<T>, [Option<UpdateGrads<T>>; 3]);

impl<T: Element, F: Function> Node<T, F> {
    fn forward(&mut self, keep: bool) -> Result<Vec<T>> {
        let [gate, up, down] = &self.layers;
        let (mut hidden, t_gate) = gate.forward::<T>(&self.x, true)?;
        let (of_up, t_up) = up.forward::<T>(&self.x, true)?;
        gate::gate_in_place::<F, T>(Threads::All, &mut hidden, &of_up);
        self.of_up = keep.then_some(of_up);
        let (y, t_down) = down.forward::<T>(&self.inner(hidden)?, true)?;
        self.t = [t_gate, t_up, t_down];
        Ok(y)
    }

    /// The gradients of the input and of the updates.
    fn backward(&self, grad: &Tensor) -> Result<Grads<T>> {
        let ([gate, up, down], [t_gate, t_up, t_down]) = (&self.layers, &self.t);
        let (of_gate, _) = gate.forward::<T>(&self.x, false)?;
        let of_up: Cow<[T]> = match &self.of_up {
            Some(kept) => kept.into(),
            None => up.forward::<T>(&self.x, false)?.0.into(),
        };
        let mut hidden = buffer(of_gate.len());
        gate::gate_on::<F, T>(Threads::All, &of_gate, &of_up, &mut hidden);
        let hidden = self.inner(hidden)?;
        let grad = working(grad)?;
        let (on_hidden, on_down) = down.backward(&hidden, &grad, t_down, true, true)?;
        drop(hidden);
        let mut on_gate = on_hidden.unwrap_or_default();
        let (mut value, mut on_up) = (buffer(of_up.len()), buffer(of_up.len()));
        gate::backward_on::<F, T>(
            Threads::All,
            &of_gate,
            &of_up,
            &mut value,
            &mut on_up,
            &mut on_gate,
        );
        drop((of_gate, of_up, value));
        let on_gate = self.inner(on_gate)?;
        let (on_x, on_gate) = gate.backward(&self.x, &on_gate, t_gate, true, true)?;
        let on_up = self.inner(on_up)?;
        let (more, on_up) = up.backward(&self.x, &on_up, t_up, true, true)?;
        let (mut on_x, more) = (on_x.unwrap_or_default(), more.unwrap_or_default());
        for (sum, more) in on_x.iter_mut().zip(more) {
            *sum += more;
        }
        Ok((on_x, [on_gate, on_up, on_down]))
    }

    /// A row of hidden values for each row of the input.
    fn inner(&self, values: Vec<T>) -> Result<Tensor> {
        let rows = self.layers[0].rows;
        let width = values.len().checked_div(rows).unwrap_or(0);
        tensor(values, (rows, width))
    }
}

#[cfg(test)]
mod tests {
    use super::super::adapted::UpdateParts;
    use super::super::adapted_linear;
    use super::super::mlp::activate;
    use super::super::quantised::Blocks;
    use super::*;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{DType, Device, Var};
    use std::sync::Arc;

    fn fixed(shape: (usize, usize), dtype: DType, seed: usize) -> Result<Tensor> {
        let value = |i: usize| ((i + 101 * seed) as f64 * 0.618_033_988).fract() - 0.5;
        let values: Vec<f64> = (0..shape.0 * shape.1).map(value).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
    }

    /// A layer in blocks, with an update of rank 3 if the seed is odd.
    fn layer(shape: (usize, usize), dtype: DType, seed: usize) -> Result<(LinearParts, Vec<Var>)> {
        let values = fixed(shape, DType::F32, seed)?;
        let tensor = Arc::new(QTensor::quantize(&values, GgmlDType::Q5_1)?);
        let (mut updates, mut vars) = (Vec::new(), Vec::new());
        if seed % 2 == 1 {
            let a = Var::from_tensor(&fixed((3, shape.1), dtype, seed + 10)?)?;
            let b = Var::from_tensor(&fixed((shape.0, 3), dtype, seed + 20)?)?;
            updates.push(UpdateParts {
                a: a.as_tensor().clone(),
                b: b.as_tensor().clone(),
                bias: None,
                gain: None,
                scaling: 0.5,
                dropout: 0.0,
            });
            vars.extend([a, b]);
        }
        let is_exact = true;
        let parts = LinearParts {
            weight: Tensor::zeros((), dtype, &Device::Cpu)?.broadcast_as(shape)?,
            blocks: Some(Blocks { tensor, is_exact }),
            bias: Some(fixed((1, shape.0), dtype, seed + 30)?.squeeze(0)?),
            updates,
            detour: None,
        };
        Ok((parts, vars))
    }

    fn values(tensor: &Tensor) -> Result<Vec<f64>> {
        tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
    }

    #[test]
    fn one_node_computes_what_single_nodes_do() -> Result<()> {
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F64, 1e-11)] {
            for (act, recompute) in [
                (Activation::Silu, false),
                (Activation::Silu, true),
                (Activation::Gelu, false),
                (Activation::GeluPytorchTanh, true),
            ] {
                let (gate, mut vars) = layer((96, 64), dtype, 1)?;
                let (up, more) = layer((96, 64), dtype, 2)?;
                vars.extend(more);
                let (down, more) = layer((40, 96), dtype, 3)?;
                vars.extend(more);
                let x = Var::from_tensor(&fixed((5, 64), dtype, 4)?)?;
                vars.push(x.clone());
                let xs = x.as_tensor().reshape((1, 5, 64))?;
                let gated = Gated {
                    gate: &gate,
                    up: &up,
                    down: &down,
                    act,
                    recompute,
                };
                let Some(ours) = gated.forward(&xs)? else {
                    candle_core::bail!("{act:?} in {dtype:?} is not known");
                };
                let hidden = activate(&adapted_linear(&xs, &gate)?, act)?;
                let hidden = (hidden * adapted_linear(&xs, &up)?)?;
                let theirs = adapted_linear(&hidden, &down)?;
                let weights = fixed((5, 40), dtype, 5)?.reshape((1, 5, 40))?;
                let grads = |ys: &Tensor| (ys * &weights)?.sum_all()?.backward();
                let (on_ours, on_theirs) = (grads(&ours)?, grads(&theirs)?);
                let mut pairs = vec![(values(&ours)?, values(&theirs)?)];
                for var in &vars {
                    let of = |grads: &candle_core::backprop::GradStore| {
                        grads.get(var).map(values).transpose()
                    };
                    let (ours, theirs) = (of(&on_ours)?, of(&on_theirs)?);
                    pairs.push((ours.unwrap_or_default(), theirs.unwrap_or_default()));
                }
                assert_eq!(pairs.len(), 6);
                for (ours, theirs) in pairs {
                    assert!(ours.len() == theirs.len() && !ours.is_empty());
                    let largest = theirs
                        .iter()
                        .fold(0f64, |most, value| most.max(value.abs()));
                    for (ours, theirs) in ours.iter().zip(&theirs) {
                        let error = (ours - theirs).abs() / largest;
                        assert!(error < tolerance, "{act:?} {dtype:?}: {ours} {theirs}");
                    }
                }
                // Without a gradient to compute, single nodes leave few rows to candle's kernels.
                let detached = [gate, up, down].map(|layer| layer.detached());
                let [gate, up, down] = &detached;
                let gated = Gated {
                    gate,
                    up,
                    down,
                    act,
                    recompute,
                };
                assert!(gated.forward(&xs.detach())?.is_none());
            }
        }
        Ok(())
    }
}

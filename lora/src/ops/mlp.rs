//! A residual MLP as one op: shortcut + gamma·drop(fc2(act(fc1(norm(x))))), where a gated one multiplies
//! the activation's result by up(norm(x)).

use super::adapted::{LinearParts, Operands, adapted_linear};
use super::block::{Behind, NormOperands, NormParts, is_layer};
use super::contiguous::copy;
use super::gated::Gated;
use super::{Compute, dropout, gelu, gelu_erf, record, relu, silu, working};
use crate::kernels::activation::{Function, GeluErf, GeluTanh, Relu, Silu};
use crate::kernels::adapted::Direction;
use crate::kernels::buffer::{Cpu, buffer, tensor};
use crate::kernels::dropout::Dropout;
use crate::kernels::mlp::{self, Kept};
use crate::kernels::rows::{Keep, Shortcut};
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::{Activation, Module};
use std::marker::PhantomData;

/// The parts of the block.
#[derive(Clone, Debug)]
pub(crate) struct MlpParts {
    pub(crate) norm: Option<NormParts>,
    pub(crate) first: FirstParts,
    pub(crate) act: Activation,
    pub(crate) fc2: LinearParts,
    pub(crate) behind: Behind,
    /// Compute the hidden values anew in the backward pass.
    pub(crate) recompute: bool,
}

/// What makes the hidden values of a normalised input.
#[derive(Clone, Debug)]
pub(crate) enum FirstParts {
    /// act(fc1(x))
    Plain(LinearParts),
    /// act(gate(x))·up(x)
    Gated(LinearParts, LinearParts),
    /// The same, by one layer with the gate's outputs first.
    Joined(LinearParts),
}

impl FirstParts {
    /// The layer before the activation and the one that multiplies its result.
    fn apart(&self) -> Result<(LinearParts, Option<LinearParts>)> {
        Ok(match self {
            Self::Plain(fc1) => (fc1.clone(), None),
            Self::Gated(gate, up) => (gate.clone(), Some(up.clone())),
            Self::Joined(both) => {
                let half = half(both)?;
                let part = |start| both.outputs(start, half);
                (part(0)?, Some(part(half)?))
            }
        })
    }

    /// The hidden values, layer by layer.
    fn composed(&self, xs: &Tensor, act: Activation) -> Result<Tensor> {
        match self {
            Self::Plain(fc1) => activate(&adapted_linear(xs, fc1)?, act),
            Self::Gated(gate, up) => {
                let gate = adapted_linear(xs, gate)?;
                activate(&gate, act)? * adapted_linear(xs, up)?
            }
            Self::Joined(both) => {
                let half = half(both)?;
                let both = adapted_linear(xs, both)?;
                let gate = both.narrow(D::Minus1, 0, half)?.contiguous()?;
                activate(&gate, act)? * both.narrow(D::Minus1, half, half)?
            }
        }
    }
}

/// The outputs of the gate, of those of gate and up together.
fn half(both: &LinearParts) -> Result<usize> {
    let outputs = both.weight.dim(0)?;
    if outputs % 2 != 0 {
        bail!("a layer of gate and up has as many outputs for each, it has {outputs} in all");
    }
    Ok(outputs / 2)
}

/// The parts as the kernel takes them.
#[derive(Clone)]
struct Apart {
    norm: Option<NormParts>,
    fc1: LinearParts,
    up: Option<LinearParts>,
    fc2: LinearParts,
    gamma: Option<Tensor>,
}

/// The block's result for `xs` of shape (.., in). It is one node where the kernel knows the parts, else
/// one node for each part.
pub(crate) fn residual_mlp(xs: &Tensor, parts: &MlpParts) -> Result<Tensor> {
    match parts.act {
        Activation::Gelu => with::<GeluErf>(xs, parts),
        Activation::NewGelu | Activation::GeluPytorchTanh => with::<GeluTanh>(xs, parts),
        Activation::Relu => with::<Relu>(xs, parts),
        Activation::Silu => with::<Silu>(xs, parts),
        _ => composed(xs, parts),
    }
}

/// The block with this activation, in the precision to compute in.
fn with<F: Function + 'static>(xs: &Tensor, parts: &MlpParts) -> Result<Tensor> {
    let apart = parts.apart()?;
    match Compute::of(xs) {
        Compute::F32 if apart.fit(xs, &parts.behind) => fused::<f32, F>(xs, parts, apart),
        Compute::F64 if apart.fit(xs, &parts.behind) => fused::<f64, F>(xs, parts, apart),
        _ => composed(xs, parts),
    }
}

impl MlpParts {
    /// The layers' result by one node, if their weights are in blocks.
    fn in_blocks(&self, normed: &Tensor) -> Result<Option<Tensor>> {
        let FirstParts::Gated(gate, up) = &self.first else {
            return Ok(None);
        };
        let gated = Gated {
            gate,
            up,
            down: &self.fc2,
            act: self.act,
            recompute: self.recompute,
        };
        gated.forward(normed)
    }

    fn apart(&self) -> Result<Apart> {
        let (fc1, up) = self.first.apart()?;
        Ok(Apart {
            norm: self.norm.clone(),
            fc1,
            up,
            fc2: self.fc2.clone(),
            gamma: self.behind.gamma.clone(),
        })
    }
}

impl Apart {
    /// Whether the fused op computes this: everything frozen but the updates, one dtype, shapes
    /// that belong together. The single ops report whatever does not fit, so that each error has
    /// one text.
    fn fit(&self, xs: &Tensor, behind: &Behind) -> bool {
        let (Ok((hidden, width)), Ok(outputs)) = (self.fc1.weight.dims2(), self.fc2.weight.dim(0))
        else {
            return false;
        };
        let dtype = xs.dtype();
        matches!(dtype, DType::BF16 | DType::F16 | DType::F32 | DType::F64)
            && xs.dims().last() == Some(&width)
            && is_layer(&self.fc1, dtype, width, hidden)
            && (self.up.as_ref()).is_none_or(|up| is_layer(up, dtype, width, hidden))
            && is_layer(&self.fc2, dtype, hidden, outputs)
            && (self.norm.as_ref()).is_none_or(|norm| norm.fits(dtype, width))
            && behind.fits(xs, outputs)
    }
}

fn composed(xs: &Tensor, parts: &MlpParts) -> Result<Tensor> {
    let normed = match &parts.norm {
        Some(norm) => norm.forward(xs)?,
        None => xs.clone(),
    };
    let ys = match parts.in_blocks(&normed)? {
        Some(ys) => ys,
        None => {
            let hidden = parts.first.composed(&normed, parts.act)?;
            adapted_linear(&hidden, &parts.fc2)?
        }
    };
    parts.behind.composed(&ys, &normed)
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
    parts: &MlpParts,
    apart: Apart,
) -> Result<Tensor> {
    let span = profile::forward("mlp");
    let (within, shortcut) = parts.behind.shortcut(xs);
    let updates: Vec<_> = apart.layers().map(|layer| layer?.update()).collect();
    let absent = &apart.fc1.weight;
    let a = |layer: usize| updates[layer].map_or(absent, |update| &update.a);
    let b = |layer: usize| updates[layer].map_or(absent, |update| &update.b);
    let shortcut_or = shortcut.unwrap_or(absent);
    let args = [xs, shortcut_or, a(0), b(0), a(1), b(1), a(2), b(2)];
    let keep = match args.iter().any(|arg| arg.track_op()) {
        false => Keep::Nothing,
        true if parts.recompute => Keep::Little,
        true => Keep::Inner,
    };
    let outputs = apart.fc2.weight.dim(0)?;
    let xs_shape = xs.shape().clone();
    let mut shape = xs.dims().to_vec();
    shape[xs.rank() - 1] = outputs;
    let block = Block::<F> {
        x: copy(&xs.detach())?,
        masks: parts.masks(),
        dropout: dropout::mask(parts.behind.dropout),
        within,
        parts: apart.detached(),
        rows: xs.elem_count() / xs.dim(D::Minus1)?,
        act: PhantomData,
    };
    let shortcut = shortcut.map(|shortcut| working(&copy(&shortcut.detach())?));
    let mut y = buffer::<T>(block.rows * outputs);
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
        let (on_x, [(a1, b1), (a_up, b_up), (a2, b2)]) = block.backward::<T>(grad, &kept, on_xs)?;
        let on_x = on_x.map(|on_x| tensor(on_x, &xs_shape)?.to_dtype(dtype));
        let on_x = on_x.transpose()?;
        let on_shortcut = on_shortcut.then(|| grad.clone());
        Ok([on_x, on_shortcut, a1, b1, a_up, b_up, a2, b2])
    })
}

impl MlpParts {
    /// The masks of the updates of fc1, up and fc2, drawn in the order of the layers.
    fn masks(&self) -> [Option<Dropout>; 3] {
        let draw = |layer: &LinearParts| dropout::mask(layer.update()?.dropout);
        let [fc1, up] = match &self.first {
            FirstParts::Plain(fc1) => [draw(fc1), None],
            FirstParts::Gated(gate, up) => [draw(gate), draw(up)],
            // One layer has one mask.
            FirstParts::Joined(both) => [draw(both); 2],
        };
        [fc1, up, draw(&self.fc2)]
    }
}

impl Apart {
    /// fc1, up and fc2.
    fn layers(&self) -> impl Iterator<Item = Option<&LinearParts>> {
        [Some(&self.fc1), self.up.as_ref(), Some(&self.fc2)].into_iter()
    }

    /// The same block without its graph.
    fn detached(&self) -> Self {
        Self {
            fc1: self.fc1.detached(),
            up: self.up.as_ref().map(LinearParts::detached),
            fc2: self.fc2.detached(),
            ..self.clone()
        }
    }

    /// The same block in the precision to compute in.
    fn working(&self) -> Result<Self> {
        Ok(Self {
            norm: self.norm.as_ref().map(NormParts::working).transpose()?,
            fc1: self.fc1.working()?,
            up: self.up.as_ref().map(LinearParts::working).transpose()?,
            fc2: self.fc2.working()?,
            gamma: self.gamma.as_ref().map(working).transpose()?,
        })
    }
}

/// What the block's node keeps: its input, the frozen parts and the values of the updates.
struct Block<F> {
    x: Tensor,
    parts: Apart,
    masks: [Option<Dropout>; 3],
    dropout: Option<Dropout>,
    within: Option<Shortcut>,
    rows: usize,
    act: PhantomData<F>,
}

/// The gradients of an update's A and B.
type OnUpdate = (Option<Tensor>, Option<Tensor>);

impl<F: Function> Block<F> {
    /// Calls `f` with the block as slices, and x.
    fn run<T: Element, R>(
        &self,
        pass: Direction,
        f: impl FnOnce(&mlp::Mlp<'_, T, F>, &[T]) -> R,
    ) -> Result<R> {
        let (x, parts) = (working(&self.x)?, self.parts.working()?);
        let fc1 = Operands::<T>::of(&parts.fc1)?;
        let up = parts.up.as_ref().map(Operands::<T>::of).transpose()?;
        let fc2 = Operands::<T>::of(&parts.fc2)?;
        let norm = parts.norm.as_ref().map(NormParts::operands).transpose()?;
        let gamma = parts.gamma.as_ref().map(Cpu::<T>::of).transpose()?;
        let x = Cpu::<T>::of(&x)?;
        let [mask1, mask_up, mask2] = self.masks;
        let mlp = mlp::Mlp {
            norm: norm.as_ref().map(NormOperands::kernel),
            fc1: fc1.layer(mask1, self.rows, pass),
            act: PhantomData,
            up: up.as_ref().map(|up| up.layer(mask_up, self.rows, pass)),
            fc2: fc2.layer(mask2, self.rows, pass),
            dropout: self.dropout,
            gamma: gamma.as_deref(),
            shortcut: self.within,
        };
        Ok(f(&mlp, &x))
    }

    /// The gradients of x, if wanted, and of the updates of fc1, up and fc2.
    fn backward<T: Element>(
        &self,
        grad: &Tensor,
        kept: &Kept<T>,
        on_xs: bool,
    ) -> Result<(Option<Vec<T>>, [OnUpdate; 3])> {
        let mut on_x = on_xs.then(|| buffer(self.x.elem_count()));
        let grad = working(grad)?;
        let grad = Cpu::<T>::of(&grad)?;
        let grads = self.run(Direction::Backward, |mlp, x| {
            mlp.backward(x, &grad, kept, on_x.as_deref_mut())
        })?;
        let mut on_updates = [(); 3].map(|()| (None, None));
        let layers = self.parts.layers().zip(grads).zip(&mut on_updates);
        for ((layer, grads), (on_a, on_b)) in layers {
            let update = layer.and_then(LinearParts::update);
            if let (Some(update), Some(grads)) = (update, grads) {
                let (a, b) = grads.finish(update.a.dim(0)?, update.scaling);
                *on_a = Some(tensor(a, update.a.shape())?);
                *on_b = Some(tensor(b, update.b.shape())?);
            }
        }
        Ok((on_x, on_updates))
    }
}

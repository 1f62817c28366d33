//! Attention of sequences to themselves with its layers as one op: shortcut + gamma·drop(o(attention(q, k,
//! v))), where q, k and v are layers of norm(x), with norms of their own and turned by position.

use super::adapted::{LinearParts, Operands, adapted_linear};
use super::attention::{Attention, Core};
use super::block::{Behind, NormParts, is_layer};
use super::contiguous::copy;
use super::{Compute, KvCache, contiguous, dropout, record, rope, working};
use crate::kernels::adapted::Direction;
use crate::kernels::attention::{Heads, Sizes};
use crate::kernels::buffer::{Cpu, buffer, tensor};
use crate::kernels::dropout::Dropout;
use crate::kernels::rope::Tables as TableValues;
use crate::kernels::rows::{Keep, Shortcut};
use crate::kernels::self_attention::{self as kernel, Kept};
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{D, DType, Result, Tensor, bail};

/// The parts of the block.
#[derive(Clone, Debug)]
pub(crate) struct AttentionParts {
    pub(crate) norm: Option<NormParts>,
    pub(crate) inputs: InputParts,
    /// The norms of queries and keys.
    pub(crate) head_norms: [Option<NormParts>; 2],
    pub(crate) rope: Option<Tables>,
    /// By which all keys of a cache turn, where earlier ones turn by other angles as more follow.
    pub(crate) cached_rope: Option<Tables>,
    /// A plain one if missing.
    pub(crate) core: Option<Attention>,
    pub(crate) output: LinearParts,
    pub(crate) heads: usize,
    /// The results of so many first tokens alone.
    pub(crate) first: Option<usize>,
    pub(crate) behind: Behind,
    /// Compute queries, keys and values anew in the backward pass.
    pub(crate) recompute: bool,
}

/// What makes queries, keys and values of a normalised input.
#[derive(Clone, Debug)]
pub(crate) enum InputParts {
    Apart(Box<[LinearParts; 3]>),
    /// One layer, with the outputs for queries first and those for values last.
    Joined(LinearParts),
}

/// Cosines and sines, (time, half) or (batch, time, half).
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

/// The widths of all query heads and of all key heads, and of one.
#[derive(Clone, Copy, Debug)]
struct Widths {
    queries: usize,
    keys: usize,
    head: usize,
}

impl Widths {
    /// Where the outputs of a joined layer for queries, keys and values start, and how many these are.
    fn parts(&self) -> [(usize, usize); 3] {
        let Self { queries, keys, .. } = *self;
        [(0, queries), (queries, keys), (queries + keys, keys)]
    }
}

/// The block's result for `xs` of shape (batch, time, in). It is one node where the kernel knows the
/// parts, else one node for each part. With a cache the keys and values of earlier tokens go before
/// those of `xs`.
pub(crate) fn self_attention(
    xs: &Tensor,
    parts: &AttentionParts,
    cache: Option<&mut KvCache>,
) -> Result<Tensor> {
    let widths = parts.widths()?;
    if cache.is_none() && parts.first.is_none() {
        match Compute::of(xs) {
            Compute::F32 if parts.fit(xs, widths) => return fused::<f32>(xs, parts, widths),
            Compute::F64 if parts.fit(xs, widths) => return fused::<f64>(xs, parts, widths),
            _ => {}
        }
    }
    parts.composed(xs, widths, cache)
}

impl AttentionParts {
    fn widths(&self) -> Result<Widths> {
        let (_, queries) = self.output.weight.dims2()?;
        if self.heads == 0 || !queries.is_multiple_of(self.heads) {
            bail!(
                "attention: the layer behind {} heads has {queries} inputs, not as many for each",
                self.heads
            );
        }
        let head = queries / self.heads;
        let keys = match &self.inputs {
            InputParts::Apart(layers) => layers[1].weight.dim(0)?,
            InputParts::Joined(layer) => layer.weight.dim(0)?.saturating_sub(queries) / 2,
        };
        let fits = match &self.inputs {
            InputParts::Apart(layers) => {
                layers[0].weight.dim(0)? == queries && layers[2].weight.dim(0)? == keys
            }
            InputParts::Joined(layer) => layer.weight.dim(0)? == queries + 2 * keys,
        };
        let groups = head > 0 && keys > 0 && keys.is_multiple_of(head);
        if !fits || !groups || !(queries / head).is_multiple_of(keys / head) {
            bail!(
                "attention: {} heads of {head} numbers do not fit layers with {} outputs",
                self.heads,
                self.inputs.outputs()?
            );
        }
        Ok(Widths {
            queries,
            keys,
            head,
        })
    }

    /// Whether the fused op computes this: everything frozen but the updates, one dtype, shapes
    /// that belong together. The single ops report whatever does not fit, so that each error has
    /// one text.
    fn fit(&self, xs: &Tensor, widths: Widths) -> bool {
        let &[batch, time, width] = xs.dims() else {
            return false;
        };
        let (dtype, Ok(outputs)) = (xs.dtype(), self.output.weight.dim(0)) else {
            return false;
        };
        let Widths {
            queries,
            keys,
            head,
        } = widths;
        let fits = |norm: &Option<NormParts>, width: usize| {
            norm.as_ref().is_none_or(|norm| norm.fits(dtype, width))
        };
        // Over each head, or over all heads together.
        let fits_heads = |norm: &Option<NormParts>, all: usize| fits(norm, head) || fits(norm, all);
        matches!(dtype, DType::BF16 | DType::F16 | DType::F32 | DType::F64)
            && xs.elem_count() > 0
            && match &self.inputs {
                InputParts::Apart(layers) => layers
                    .iter()
                    .zip(widths.parts())
                    .all(|(layer, (_, outputs))| is_layer(layer, dtype, width, outputs)),
                InputParts::Joined(layer) => is_layer(layer, dtype, width, queries + 2 * keys),
            }
            && is_layer(&self.output, dtype, queries, outputs)
            && fits(&self.norm, width)
            && fits_heads(&self.head_norms[0], queries)
            && fits_heads(&self.head_norms[1], keys)
            && (self.rope.as_ref()).is_none_or(|rope| rope.fits(dtype, (batch, time, head)))
            && self.behind.fits(xs, outputs)
    }

    fn composed(&self, xs: &Tensor, widths: Widths, cache: Option<&mut KvCache>) -> Result<Tensor> {
        if xs.rank() != 3 {
            bail!(
                "attention: the input must be (batch, time, in), its shape is {:?}",
                xs.dims()
            );
        }
        let normed = match &self.norm {
            Some(norm) => norm.forward(xs)?,
            None => xs.clone(),
        };
        let [q, k, v] = self.inputs.composed(&normed, widths, self.first)?;
        let [q_norm, k_norm] = &self.head_norms;
        let q = turned(heads(&q, widths.head, q_norm.as_ref())?, self.rope.as_ref())?;
        let k = heads(&k, widths.head, k_norm.as_ref())?;
        let v = heads(&v, widths.head, None)?;
        let append = |k: Tensor, v: Tensor| match cache {
            Some(cache) => cache.append(&k, &v),
            None => Ok((k, v)),
        };
        let (k, v) = match &self.cached_rope {
            None => append(turned(k, self.rope.as_ref())?, v)?,
            Some(rope) => {
                let (k, v) = append(k, v)?;
                (turned(k, Some(rope))?, v)
            }
        };
        let ys = self.core(widths).forward(&q, &k, &v)?;
        let ys = ys.transpose(1, 2)?.flatten_from(2)?;
        let ys = adapted_linear(&ys, &self.output)?;
        match self.first {
            Some(_) if self.core.as_ref().is_some_and(Attention::sees_by_place) => bail!(
                "attention: the first tokens alone have no place: use no causal mask, window or sequences"
            ),
            Some(first) => {
                let (behind, normed) = (self.behind.first(first)?, normed.narrow(1, 0, first)?);
                behind.composed(&ys, &contiguous(&normed)?)
            }
            None => self.behind.composed(&ys, &normed),
        }
    }

    fn core(&self, widths: Widths) -> Attention {
        let plain = || Attention::new((widths.head as f64).powf(-0.5));
        self.core.clone().unwrap_or_else(plain)
    }

    /// The masks of the updates, drawn in the order of the layers.
    fn masks(&self) -> [Option<Dropout>; 3] {
        let draw = |layer: &LinearParts| dropout::mask(layer.update()?.dropout);
        match &self.inputs {
            InputParts::Apart(layers) => layers.each_ref().map(draw),
            // One layer has one mask.
            InputParts::Joined(layer) => [draw(layer); 3],
        }
    }
}

impl InputParts {
    fn outputs(&self) -> Result<String> {
        let outputs = |layer: &LinearParts| Ok(layer.weight.dim(0)?.to_string());
        match self {
            Self::Apart(layers) => {
                let all: Result<Vec<_>> = layers.iter().map(outputs).collect();
                Ok(all?.join(", "))
            }
            Self::Joined(layer) => outputs(layer),
        }
    }

    /// The layers of queries, keys and values.
    fn apart(&self, widths: Widths) -> Result<[LinearParts; 3]> {
        Ok(match self {
            Self::Apart(layers) => (**layers).clone(),
            Self::Joined(layer) => {
                let [q, k, v] = widths.parts();
                let part = |(start, count)| layer.outputs(start, count);
                [part(q)?, part(k)?, part(v)?]
            }
        })
    }

    /// Queries, keys and values; queries of so many first tokens alone.
    fn composed(&self, xs: &Tensor, widths: Widths, first: Option<usize>) -> Result<[Tensor; 3]> {
        let first = |xs: &Tensor| match first {
            Some(first) => contiguous(&xs.narrow(1, 0, first)?),
            None => Ok(xs.clone()),
        };
        Ok(match self {
            Self::Apart(layers) => {
                let [q, k, v] = &**layers;
                [
                    adapted_linear(&first(xs)?, q)?,
                    adapted_linear(xs, k)?,
                    adapted_linear(xs, v)?,
                ]
            }
            Self::Joined(layer) => {
                let all = adapted_linear(xs, layer)?;
                let part = |(start, count)| contiguous(&all.narrow(D::Minus1, start, count)?);
                let [q, k, v] = widths.parts();
                [first(&part(q)?)?, part(k)?, part(v)?]
            }
        })
    }
}

impl Tables {
    fn fits(&self, dtype: DType, (batch, time, head): (usize, usize, usize)) -> bool {
        let fits = |dims: &[usize]| match *dims {
            [times, half] => times >= time && 2 * half <= head,
            [batches, times, half] => batches == batch && times >= time && 2 * half <= head,
            _ => false,
        };
        let tables = [&self.cos, &self.sin];
        fits(self.cos.dims())
            && self.cos.rank() == self.sin.rank()
            && self.cos.dim(D::Minus1).ok() == self.sin.dim(D::Minus1).ok()
            && fits(self.sin.dims())
            && tables.iter().all(|table| table.dtype() == dtype)
    }

    /// The rows for so many positions, in the precision to compute in.
    fn used(&self, time: usize) -> Result<Self> {
        let used = |table: &Tensor| {
            let table = table.narrow(table.rank() - 2, 0, time)?;
            working(&table)?.contiguous()
        };
        Ok(Self {
            cos: used(&self.cos)?,
            sin: used(&self.sin)?,
        })
    }
}

/// From (batch, time, width) to (batch, heads, time, dim). A norm is over as many numbers as it has
/// weights: over each head, or over all together.
fn heads(xs: &Tensor, dim: usize, norm: Option<&NormParts>) -> Result<Tensor> {
    let (batch, time, width) = xs.dims3()?;
    let xs = match norm {
        Some(norm) => {
            let together = norm.weight.elem_count();
            if together == 0 || !width.is_multiple_of(together) {
                bail!("attention: a norm over {together} numbers does not fit heads of {width}");
            }
            let xs = xs.reshape((batch, time, width / together, together))?;
            norm.forward(&xs)?
        }
        None => xs.clone(),
    };
    xs.reshape((batch, time, width / dim, dim))?.transpose(1, 2)
}

/// Turns (batch, heads, time, dim). Numbers behind those that the tables are for stay.
fn turned(xs: Tensor, tables: Option<&Tables>) -> Result<Tensor> {
    let Some(Tables { cos, sin }) = tables else {
        return Ok(xs);
    };
    let (all, turning) = (xs.dim(D::Minus1)?, 2 * cos.dim(D::Minus1)?);
    if turning >= all {
        return rope(&xs, cos, sin);
    }
    let turned = rope(&xs.narrow(D::Minus1, 0, turning)?, cos, sin)?;
    let rest = xs.narrow(D::Minus1, turning, all - turning)?;
    Tensor::cat(&[&turned, &rest], D::Minus1)
}

fn fused<T: Element>(xs: &Tensor, parts: &AttentionParts, widths: Widths) -> Result<Tensor> {
    let span = profile::forward("attention");
    let (within, shortcut) = parts.behind.shortcut(xs);
    let inputs = parts.inputs.apart(widths)?;
    let layers = [&inputs[0], &inputs[1], &inputs[2], &parts.output];
    let updates = layers.map(LinearParts::update);
    let absent = &parts.output.weight;
    let a = |layer: usize| updates[layer].map_or(absent, |update| &update.a);
    let b = |layer: usize| updates[layer].map_or(absent, |update| &update.b);
    let shortcut_or = shortcut.unwrap_or(absent);
    let args = [
        xs,
        shortcut_or,
        a(0),
        b(0),
        a(1),
        b(1),
        a(2),
        b(2),
        a(3),
        b(3),
    ];
    let keep = match args.iter().any(|arg| arg.track_op()) {
        false => Keep::Nothing,
        true if parts.recompute => Keep::Little,
        true => Keep::Inner,
    };
    let (batch, time, _) = xs.dims3()?;
    let outputs = parts.output.weight.dim(0)?;
    let sizes = Sizes {
        batch,
        heads: parts.heads,
        kv_heads: widths.keys / widths.head,
        queries: time,
        keys: time,
        dim: widths.head,
        value_dim: widths.head,
    };
    let (xs_shape, dtype) = (xs.shape().clone(), xs.dtype());
    // Drawn in the order in which the ops would draw.
    let masks = parts.masks();
    let core = parts.core(widths).core(sizes, dtype)?;
    let output_mask = parts.output.update();
    let output_mask = output_mask.and_then(|update| dropout::mask(update.dropout));
    let node = Node {
        x: copy(&xs.detach())?,
        norm: parts.norm.clone(),
        layers: layers.map(LinearParts::detached),
        masks: [masks[0], masks[1], masks[2], output_mask],
        head_norms: parts.head_norms.clone(),
        rope: parts
            .rope
            .as_ref()
            .map(|rope| rope.used(time))
            .transpose()?,
        core,
        dropout: dropout::mask(parts.behind.dropout),
        gamma: parts.behind.gamma.clone(),
        within,
    };
    let shortcut = shortcut.map(|shortcut| working(&copy(&shortcut.detach())?));
    let mut y = buffer::<T>(batch * time * outputs);
    let kept = {
        let shortcut = shortcut.transpose()?;
        let shortcut = shortcut.as_ref().map(Cpu::<T>::of).transpose()?;
        node.run(Direction::Forward, |block, x| {
            block.forward(x, shortcut.as_deref(), &mut y, keep)
        })?
    };
    let y = tensor(y, (batch, time, outputs))?.to_dtype(dtype)?;
    span.end([&y].into_iter());
    record(
        "attention",
        args,
        y,
        move |grad, [on_xs, on_shortcut, ..]| {
            let (on_x, updates) = node.backward::<T>(grad, &kept, on_xs)?;
            let on_x = on_x.map(|on_x| tensor(on_x, &xs_shape)?.to_dtype(dtype));
            let on_x = on_x.transpose()?;
            let on_shortcut = on_shortcut.then(|| grad.clone());
            let [(a_q, b_q), (a_k, b_k), (a_v, b_v), (a_o, b_o)] = updates;
            Ok([on_x, on_shortcut, a_q, b_q, a_k, b_k, a_v, b_v, a_o, b_o])
        },
    )
}

/// What the block's node keeps: its input, the frozen parts and the values of the updates.
struct Node {
    x: Tensor,
    norm: Option<NormParts>,
    /// Of queries, keys and values, and the last one.
    layers: [LinearParts; 4],
    masks: [Option<Dropout>; 4],
    head_norms: [Option<NormParts>; 2],
    rope: Option<Tables>,
    core: Core,
    dropout: Option<Dropout>,
    gamma: Option<Tensor>,
    within: Option<Shortcut>,
}

/// The gradients of an update's A and B.
type OnUpdate = (Option<Tensor>, Option<Tensor>);

impl Node {
    /// Calls `f` with the block as slices, and x.
    fn run<T: Element, R>(
        &self,
        pass: Direction,
        f: impl FnOnce(&kernel::SelfAttention<'_, T>, &[T]) -> R,
    ) -> Result<R> {
        let x = working(&self.x)?;
        let x = Cpu::<T>::of(&x)?;
        let Sizes { batch, queries, .. } = self.core.sizes;
        let [q, k, v, o] = &self.layers;
        let (q, k, v, o) = (q.working()?, k.working()?, v.working()?, o.working()?);
        let layers = [
            Operands::<T>::of(&q)?,
            Operands::<T>::of(&k)?,
            Operands::<T>::of(&v)?,
            Operands::<T>::of(&o)?,
        ];
        let layer = |index: usize| layers[index].layer(self.masks[index], batch * queries, pass);
        let working_norm = |norm: &Option<NormParts>| {
            let norm = norm.as_ref().map(NormParts::working);
            norm.transpose()
        };
        let norm = working_norm(&self.norm)?;
        let norm = norm.as_ref().map(NormParts::operands).transpose()?;
        let [q_norm, k_norm] = &self.head_norms;
        let (q_norm, k_norm) = (working_norm(q_norm)?, working_norm(k_norm)?);
        let q_norm = q_norm.as_ref().map(NormParts::operands).transpose()?;
        let k_norm = k_norm.as_ref().map(NormParts::operands).transpose()?;
        let gamma = self.gamma.as_ref().map(working).transpose()?;
        let gamma = gamma.as_ref().map(Cpu::<T>::of).transpose()?;
        let (mut half, mut by_batch, mut rope) = (0, false, None);
        if let Some(Tables { cos, sin }) = &self.rope {
            (half, by_batch) = (cos.dim(D::Minus1)?, cos.rank() == 3);
            rope = Some((Cpu::<T>::of(cos)?, Cpu::<T>::of(sin)?));
        }
        let mask = self.core.mask()?;
        let none = Heads {
            values: &[],
            steps: [0; 4],
        };
        let block = kernel::SelfAttention {
            norm: norm.as_ref().map(|norm| norm.kernel()),
            inputs: [layer(0), layer(1), layer(2)],
            head_norms: [
                q_norm.as_ref().map(|norm| norm.kernel()),
                k_norm.as_ref().map(|norm| norm.kernel()),
            ],
            rope: rope.as_ref().map(|(cos, sin)| TableValues {
                cos,
                sin,
                half,
                time: queries,
                by_batch,
            }),
            core: self.core.kernel([none; 3], mask.as_ref()),
            output: layer(3),
            dropout: self.dropout,
            gamma: gamma.as_deref(),
            shortcut: self.within,
        };
        Ok(f(&block, &x))
    }

    /// The gradients of x, if wanted, and of the updates.
    fn backward<T: Element>(
        &self,
        grad: &Tensor,
        kept: &Kept<T>,
        on_xs: bool,
    ) -> Result<(Option<Vec<T>>, [OnUpdate; 4])> {
        let mut on_x = on_xs.then(|| buffer(self.x.elem_count()));
        let grad = working(grad)?;
        let grad = Cpu::<T>::of(&grad)?;
        let grads = self.run(Direction::Backward, |block, x| {
            block.backward(x, &grad, kept, on_x.as_deref_mut())
        })?;
        let mut on_updates = [(); 4].map(|()| (None, None));
        let layers = self.layers.iter().zip(grads).zip(&mut on_updates);
        for ((layer, grads), (on_a, on_b)) in layers {
            if let (Some(update), Some(grads)) = (layer.update(), grads) {
                let (a, b) = grads.finish(update.a.dim(0)?, update.scaling);
                *on_a = Some(tensor(a, update.a.shape())?);
                *on_b = Some(tensor(b, update.b.shape())?);
            }
        }
        Ok((on_x, on_updates))
    }
}

//! Rotary position embeddings, <https://arxiv.org/abs/2104.09864>.

use super::{Compute, record, working};
use crate::kernels::buffer::{Cpu, CpuStrided, buffer, tensor};
use crate::kernels::rope::{self, Pairs, Rows};
use crate::kernels::simd::Element;
use crate::profile;
use candle_core::{Result, Tensor, bail};
use candle_nn::rotary_emb;
use std::cmp::Reverse;

/// Rotates halves of the last dimension, as [`candle_nn::rotary_emb::rope`], with a gradient.
///
/// `xs` is (batch, heads, time, dim). On the CPU a view in another memory order costs no copy.
/// `cos` and `sin` are (time, dim / 2) or (batch, time, dim / 2); they may be longer in time. The
/// tables get no gradient.
///
/// # Errors
/// If the shapes or dtypes do not fit.
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(xs, cos, sin, (Pairs::Halves, 2), rotary_emb::rope)
}

/// Rotates neighbouring pairs, as [`candle_nn::rotary_emb::rope_i`], with a gradient.
///
/// Shapes and errors as [`rope`].
///
/// # Errors
/// If the shapes or dtypes do not fit.
pub fn rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(xs, cos, sin, (Pairs::Neighbours, 2), rotary_emb::rope_i)
}

/// Rotates halves of the last dimension of (batch, time, heads, dim), as
/// [`candle_nn::rotary_emb::rope_thd`], with a gradient.
///
/// # Errors
/// If the shapes or dtypes do not fit.
pub fn rope_thd(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(xs, cos, sin, (Pairs::Halves, 1), rotary_emb::rope_thd)
}

type Fused = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

/// The rotation. Its derivative is the rotation back.
fn rotate(
    xs: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    (pairs, time): (Pairs, usize),
    fused: Fused,
) -> Result<Tensor> {
    check(xs, cos, time)?;
    check(xs, sin, time)?;
    if cos.rank() != sin.rank() {
        bail!(
            "rope: cos of shape {:?} does not fit sin of shape {:?}",
            cos.dims(),
            sin.dims()
        );
    }
    let span = profile::forward("rope");
    // Only the rows of the tables that are used.
    let used = |table: &Tensor| {
        let table = table.narrow(table.rank() - 2, 0, xs.dims()[time])?;
        working(&table)?.contiguous()
    };
    let (cos, sin) = (used(cos)?, used(sin)?);
    let dtype = xs.dtype();
    match Compute::of(xs) {
        Compute::Tensors => {
            let x = xs.detach().contiguous()?;
            let y = match x.elem_count() {
                0 => x.zeros_like()?,
                _ => fused(&x, &cos, &sin)?,
            };
            span.end([&y].into_iter());
            record("rope", [xs], y, move |grad, _| {
                Ok([Some(match grad.elem_count() {
                    0 => grad.clone(),
                    _ => fused(grad, &cos, &sin.neg()?)?,
                })])
            })
        }
        compute => {
            let order = row_order(xs);
            let rotate = move |x: &Tensor, back| match compute {
                Compute::F64 => on_cpu::<f64>(x, &cos, &sin, (order, time), pairs, back),
                _ => on_cpu::<f32>(x, &cos, &sin, (order, time), pairs, back),
            };
            let in_order = order == [0, 1, 2, 3];
            let xs = if in_order {
                xs.clone()
            } else {
                xs.permute(order)?
            };
            let y = rotate(&working(&xs)?, false)?.to_dtype(dtype)?;
            span.end([&y].into_iter());
            let y = record("rope", [&xs], y, move |grad, _| {
                Ok([Some(rotate(&working(grad)?, true)?.to_dtype(dtype)?)])
            })?;
            if in_order {
                return Ok(y);
            }
            let mut inverse = [0; 4];
            for (position, dim) in order.into_iter().enumerate() {
                inverse[dim] = position;
            }
            y.permute(inverse)
        }
    }
}

/// The dimensions in memory order, the last one left in its place.
fn row_order(xs: &Tensor) -> [usize; 4] {
    let mut order = [0, 1, 2];
    order.sort_by_key(|&dim| Reverse(xs.stride()[dim]));
    [order[0], order[1], order[2], 3]
}

/// Rotates the rows of x, whose dimensions are permuted to this order.
fn on_cpu<T: Element>(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    (order, time): ([usize; 4], usize),
    pairs: Pairs,
    back: bool,
) -> Result<Tensor> {
    let x = match x.stride() {
        [.., 1] => x.clone(),
        _ => x.contiguous()?,
    };
    let (a, b, c, _) = x.dims4()?;
    let values = CpuStrided::<T>::of(&x)?;
    let [a_step, b_step, c_step, _] = values.steps;
    let batch_step = if cos.rank() == 3 { cos.dim(1)? } else { 0 };
    let table_step = |position: usize| match order[position] {
        0 => batch_step,
        dim if dim == time => 1,
        _ => 0,
    };
    let rows = Rows {
        dims: [a, b, c],
        steps: [a_step, b_step, c_step],
        table_steps: [table_step(0), table_step(1), table_step(2)],
    };
    let mut y = buffer::<T>(x.elem_count());
    let tables = (&*Cpu::of(cos)?, &*Cpu::of(sin)?);
    rope::rotate(&mut y, &values.values, tables, rows, pairs, back);
    tensor(y, x.shape())
}

fn check(xs: &Tensor, table: &Tensor, time: usize) -> Result<()> {
    let &[batch, _, _, dim] = xs.dims() else {
        bail!(
            "rope: the input must have 4 dimensions, its shape is {:?}",
            xs.dims()
        );
    };
    let fits = match *table.dims() {
        [times, half] => times >= xs.dims()[time] && 2 * half == dim,
        [batches, times, half] => batches == batch && times >= xs.dims()[time] && 2 * half == dim,
        _ => false,
    };
    if !fits {
        bail!(
            "rope: a table of shape {:?} does not fit an input of shape {:?}",
            table.dims(),
            xs.dims()
        );
    }
    if table.dtype() != xs.dtype() || !xs.dtype().is_float() {
        bail!(
            "rope: the input is {:?} and the table {:?}: both must be of one floating-point dtype",
            xs.dtype(),
            table.dtype()
        );
    }
    Ok(())
}

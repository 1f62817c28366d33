//! Attention in which each token sees the tokens on both sides.

use super::context::{Context, wide};
use crate::ops;
use candle_core::{Result, Tensor};

/// Scores far below any other. −∞ would make NaN of a row that sees nothing.
const UNSEEN: f64 = -1e30;

/// From (batch, time, heads * dim) to (batch, heads, time, dim), a view.
pub(super) fn heads(xs: &Tensor, count: usize) -> Result<Tensor> {
    let (batch, time, width) = xs.dims3()?;
    xs.reshape((batch, time, count, width / count))?
        .transpose(1, 2)
}

/// The attention of (batch, heads, time, dim), as (batch, time, heads * dim). In training its weights
/// are dropped.
pub(super) fn attend(
    [q, k, v]: [&Tensor; 3],
    mask: Option<&Tensor>,
    dropout: f64,
    context: &Context,
) -> Result<Tensor> {
    let scale = (q.dim(3)? as f64).powf(-0.5);
    let ys = match context.train && dropout > 0.0 {
        true => with_dropout([q, k, v], mask, scale, dropout)?,
        false => ops::sdpa(q, k, v, mask, false, scale as f32, 1.0)?,
    };
    ys.transpose(1, 2)?.flatten_from(2)
}

fn with_dropout(
    qkv: [&Tensor; 3],
    mask: Option<&Tensor>,
    scale: f64,
    dropout: f64,
) -> Result<Tensor> {
    let dtype = qkv[0].dtype();
    let wide = wide(dtype);
    let [q, k, v] = qkv.map(|xs| xs.to_dtype(wide)?.contiguous());
    let scores = ((q? * scale)?).matmul(&k?.transpose(2, 3)?.contiguous()?)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(&mask.to_dtype(wide)?.maximum(UNSEEN)?)?,
        None => scores,
    };
    let weights = ops::softmax_last_dim(&scores)?;
    ops::dropout(&weights, dropout as f32)?
        .matmul(&v?)?
        .to_dtype(dtype)
}

//! Rotary position embeddings, <https://arxiv.org/abs/2104.09864>.

use super::record;
use candle_core::{Result, Tensor};
use candle_nn::rotary_emb;

type Rotate = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

/// Rotates halves of the last dimension, as [`candle_nn::rotary_emb::rope`], with a gradient.
///
/// `xs` is (batch, heads, time, dim), `cos` and `sin` are (time, dim / 2) or with a batch dimension.
/// The tables get no gradient.
///
/// # Errors
/// If the shapes or dtypes do not fit.
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(xs, cos, sin, rotary_emb::rope)
}

/// Rotates neighbouring pairs, as [`candle_nn::rotary_emb::rope_i`], with a gradient.
///
/// Shapes and errors as [`rope`].
///
/// # Errors
/// If the shapes or dtypes do not fit.
pub fn rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(xs, cos, sin, rotary_emb::rope_i)
}

/// Rotates halves of the last dimension of (batch, time, heads, dim), as
/// [`candle_nn::rotary_emb::rope_thd`], with a gradient.
///
/// # Errors
/// If the shapes or dtypes do not fit.
pub fn rope_thd(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(xs, cos, sin, rotary_emb::rope_thd)
}

/// A rotation's derivative is the rotation back.
fn rotate(xs: &Tensor, cos: &Tensor, sin: &Tensor, rotate: Rotate) -> Result<Tensor> {
    let (cos, sin) = (cos.detach().contiguous()?, sin.detach().contiguous()?);
    let y = rotate(&xs.detach().contiguous()?, &cos, &sin)?;
    record("rope", [xs], y, move |grad, _| {
        Ok([Some(rotate(grad, &cos, &sin.neg()?)?)])
    })
}

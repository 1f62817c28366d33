//! Lengths, and functions with corners, whose gradient at the corner is PyTorch's.

use candle_core::{D, Result, Tensor};

/// The rows, each divided by its length, which counts as `least` where it is less.
pub(super) fn unit(xs: &Tensor, least: f64) -> Result<Tensor> {
    xs.broadcast_div(&lengths(xs, least)?)
}

/// The lengths of the rows, (rows, 1). At rows shorter than `least` it is constant: a square root has
/// no slope at 0.
fn lengths(xs: &Tensor, least: f64) -> Result<Tensor> {
    let squares = xs.sqr()?.sum_keepdim(D::Minus1)?;
    squares.maximum(least * least)?.sqrt()
}

/// The euclidean lengths of the rows, (rows). Its gradient at 0 is 0.
pub(super) fn euclidean(xs: &Tensor) -> Result<Tensor> {
    // The square is still a normal number in f32.
    lengths(xs, 1e-18)?.squeeze(D::Minus1)
}

/// Without its value's slope at 0, where candle's own `abs` has 1.
pub(super) fn abs(xs: &Tensor) -> Result<Tensor> {
    xs.detach().sign()? * xs
}

/// What is above 0, else 0. Its gradient at 0 is 0, where that of candle's own `relu` is 1.
pub(super) fn above_zero(xs: &Tensor) -> Result<Tensor> {
    xs.detach().gt(0.0)?.to_dtype(xs.dtype())? * xs
}

/// The cosines of rows with rows, (batch).
pub(super) fn cosines(a: &Tensor, b: &Tensor, least: f64) -> Result<Tensor> {
    (unit(a, least)? * unit(b, least)?)?.sum(D::Minus1)
}

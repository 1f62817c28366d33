//! Losses, and how they compare.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

/// A smooth loss that depends on each element, and on its place: the mean of x² + w x, where w is a
/// fixed pattern.
pub fn mean_square(xs: &Tensor) -> Result<Tensor> {
    let xs = xs.flatten_all()?.to_dtype(DType::F32)?;
    let places = Tensor::arange(0f32, xs.elem_count() as f32, xs.device())?;
    let pattern = (places * 0.7)?.sin()?;
    Ok((xs.sqr()? + (xs * pattern)?)?.mean_all()?)
}

/// The value of a loss.
pub fn value(loss: &Tensor) -> Result<f64> {
    let value = loss.detach().to_dtype(DType::F64)?.to_scalar::<f64>()?;
    ensure!(value.is_finite(), "the loss is {value}");
    Ok(value)
}

pub fn difference(a: f64, b: f64) -> f64 {
    (a - b).abs() / a.abs().max(b.abs()).max(1e-3)
}

/// The difference of two tensors, relative to the largest value of the second.
pub fn farthest(a: &Tensor, b: &Tensor) -> Result<f64> {
    ensure!(
        a.shape() == b.shape(),
        "shape {:?} in place of {:?}",
        a.shape(),
        b.shape()
    );
    Ok(largest(&(a - b)?)? / largest(b)?.max(1e-9))
}

pub fn largest(tensor: &Tensor) -> Result<f64> {
    let tensor = tensor.detach().to_dtype(DType::F64)?.abs()?;
    Ok(tensor.flatten_all()?.max(0)?.to_scalar::<f64>()?)
}

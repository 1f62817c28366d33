//! Converts adapters for a residual base to plain adapters for the original base.

use crate::{Error, Result};
use candle_core::Tensor;

/// Converts the trained values of an adapter for a residual base to an adapter for the original
/// base: A' = [A; A₀] and B' = [B, −B₀], which doubles the rank. The second half takes the initial
/// values out of the original base again.
///
/// # Errors
/// If the shapes of trained and initial values differ.
pub(crate) fn convert(
    trained_a: &Tensor,
    trained_b: &Tensor,
    initial_a: &Tensor,
    initial_b: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let pairs = [("A", trained_a, initial_a), ("B", trained_b, initial_b)];
    for (name, trained, initial) in pairs {
        if trained.dims() != initial.dims() {
            let message = format!(
                "{name} is {:?} now, but was {:?} at first",
                trained.dims(),
                initial.dims()
            );
            return Err(Error::layer("", message));
        }
    }
    let initial_a = initial_a.to_dtype(trained_a.dtype())?;
    let initial_b = initial_b.to_dtype(trained_b.dtype())?;
    Ok((
        Tensor::cat(&[trained_a, &initial_a], 0)?,
        Tensor::cat(&[trained_b, &initial_b.neg()?], 1)?,
    ))
}

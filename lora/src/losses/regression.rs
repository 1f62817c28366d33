//! The losses of numbers.

use super::vectors::abs;
use super::{float, positive};
use candle_core::{Result, Tensor, bail};

/// What becomes of the losses of a batch's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean.
    #[default]
    Mean,
    /// Their sum, for a mean over several batches.
    Sum,
    /// The losses themselves, in the shape of the values, for weights of one's own.
    None,
}

/// The squared differences of `predictions` and `targets`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lora::losses::{Reduction, mse};
///
/// let [found, wanted] = [[1f32, 2.], [1., 5.]].map(|x| Tensor::new(&x, &Device::Cpu).unwrap());
/// assert_eq!(mse(&found, &wanted, Reduction::Mean)?.to_scalar::<f32>()?, 4.5);
/// assert_eq!(mse(&found, &wanted, Reduction::None)?.to_vec1::<f32>()?, [0., 9.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes differ, there are no values, or the predictions are not floating-point.
#[doc(alias = "MSELoss")]
pub fn mse(predictions: &Tensor, targets: &Tensor, reduction: Reduction) -> Result<Tensor> {
    reduce(
        &differences("mean squared error", predictions, targets)?.sqr()?,
        reduction,
    )
}

/// The absolute differences of `predictions` and `targets`, which outliers pull less than by [`mse`].
///
/// # Errors
/// As [`mse`].
#[doc(alias = "L1Loss")]
pub fn l1(predictions: &Tensor, targets: &Tensor, reduction: Reduction) -> Result<Tensor> {
    reduce(
        &abs(&differences("L1 loss", predictions, targets)?)?,
        reduction,
    )
}

/// Half the square of differences up to `delta`, and beyond it the line that goes on from there.
///
/// # Errors
/// As [`mse`], and if `delta` is not above 0.
#[doc(alias = "HuberLoss")]
pub fn huber(
    predictions: &Tensor,
    targets: &Tensor,
    delta: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    positive("Huber loss", "delta", delta)?;
    let differences = differences("Huber loss", predictions, targets)?;
    // x · x / 2 below delta, and delta · (|x| - delta / 2) above, with the slope as a constant.
    let slope = differences.detach().clamp(-delta, delta)?;
    reduce(&(&slope * (&differences - (&slope * 0.5)?)?)?, reduction)
}

fn differences(what: &str, predictions: &Tensor, targets: &Tensor) -> Result<Tensor> {
    if predictions.dims() != targets.dims() {
        bail!(
            "{what}: the predictions are {:?}, the targets {:?}",
            predictions.dims(),
            targets.dims()
        );
    }
    if predictions.elem_count() == 0 {
        bail!("{what}: there are no values, {:?}", predictions.dims());
    }
    let predictions = float(what, "predictions", predictions)?;
    &predictions - targets.to_dtype(predictions.dtype())?
}

fn reduce(losses: &Tensor, reduction: Reduction) -> Result<Tensor> {
    match reduction {
        Reduction::Mean => losses.mean_all(),
        Reduction::Sum => losses.sum_all(),
        Reduction::None => Ok(losses.clone()),
    }
}

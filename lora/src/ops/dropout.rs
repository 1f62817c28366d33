//! Dropout whose mask can be drawn again, on every device.
//!
//! No mask is stored: a number is dropped by a hash of the mask's seed and of the number's place.
//! So the backward pass finds the mask again from the seed, and a checkpoint from the state before
//! it.

use super::{Compute, record, working};
use crate::kernels::buffer::{Cpu, tensor};
use crate::kernels::dropout::Dropout;
use crate::kernels::simd::Element;
use candle_core::{Device, Result, Tensor, bail};
use std::cell::Cell;

thread_local! {
    /// The state from which the next mask's seed comes. Each thread has its own, so that another
    /// thread's forward pass does not change the masks of a seeded one.
    static STATE: Cell<u64> = Cell::new(rand::random());
}

/// Seeds everything that is drawn in training: the dropout of the low-rank branches, of
/// [`LoraDropout`](crate::layers::LoraDropout) layers, and of [`dropout`]. After the same seed the same
/// forward passes of this thread draw the same masks, on every device. Without a seed they differ from
/// run to run.
///
/// Initial values have a seed of their own: [`LoraConfig::seed`](crate::LoraConfig::seed).
/// [`optim::save_state`](crate::optim::save_state) saves where the drawing has come to.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use lora::ops::dropout;
///
/// let xs = Tensor::ones(64, DType::F32, &Device::Cpu)?;
/// lora::seed_dropout(7);
/// let first = dropout(&xs, 0.5)?.to_vec1::<f32>()?;
/// assert_ne!(dropout(&xs, 0.5)?.to_vec1::<f32>()?, first);
/// lora::seed_dropout(7);
/// assert_eq!(dropout(&xs, 0.5)?.to_vec1::<f32>()?, first);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn seed_dropout(seed: u64) {
    STATE.set(seed);
}

/// The present state: [`seed_dropout`] with this state draws the same masks again.
pub(crate) fn dropout_state() -> u64 {
    STATE.get()
}

/// The next mask, or none if nothing is dropped.
pub(crate) fn mask(probability: f64) -> Option<Dropout> {
    if probability <= 0.0 {
        return None;
    }
    // SplitMix64's increment, 2^64 over the golden ratio: seeds in turn differ in many bits.
    let seed = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(seed);
    Some(Dropout::new(probability, seed))
}

/// Sets numbers of `xs` to 0 with this probability and divides the others by the probability to be
/// kept: candle's `dropout`, drawn from [`seed_dropout`]'s seed.
///
/// # Errors
/// If the probability is outside of `0.0..1.0`.
pub fn dropout(xs: &Tensor, drop_p: f32) -> Result<Tensor> {
    if !(0.0..1.0).contains(&drop_p) {
        bail!("dropout probability has to be in [0, 1), got {drop_p}")
    }
    drop_values(xs, f64::from(drop_p))
}

/// As [`dropout`].
pub(crate) fn drop_values(xs: &Tensor, probability: f64) -> Result<Tensor> {
    let Some(mask) = mask(probability) else {
        return Ok(xs.clone());
    };
    if Compute::of(xs) == Compute::Tensors {
        let factors = mask.kept(xs.elem_count());
        let factors = Tensor::from_vec(factors, xs.shape(), &Device::Cpu)?;
        let factors = factors.to_device(xs.device())?.to_dtype(xs.dtype())?;
        return xs * (factors * mask.factor())?;
    }
    let apply = move |xs: &Tensor| -> Result<Tensor> {
        let dropped = match Compute::of(xs) {
            Compute::F32 => on_cpu::<f32>(&working(xs)?, mask)?,
            _ => on_cpu::<f64>(xs, mask)?,
        };
        dropped.to_dtype(xs.dtype())
    };
    let value = apply(&xs.detach())?;
    record("dropout", [xs], value, move |grad, _| {
        Ok([Some(apply(grad)?)])
    })
}

fn on_cpu<T: Element>(xs: &Tensor, mask: Dropout) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    tensor(mask.of(&Cpu::<T>::of(&xs)?), xs.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    /// Devices without a kernel here drop the same numbers.
    #[test]
    fn every_device_drops_the_same() -> Result<()> {
        let ones = Tensor::ones(1000, DType::F64, &Device::Cpu)?;
        for probability in [0.25, 0.9, 1.0] {
            let Some(mask) = mask(probability) else {
                bail!("no mask")
            };
            let dropped = on_cpu::<f64>(&ones, mask)?.to_vec1::<f64>()?;
            let kept = mask.kept(1000).into_iter();
            let expected: Vec<f64> = kept.map(|kept| f64::from(kept) * mask.factor()).collect();
            assert_eq!(dropped, expected);
        }
        Ok(())
    }
}

//! Dropout whose mask can be drawn again.
//!
//! No mask is stored: a number is dropped by a hash of the mask's seed and of the number's place.
//! So the backward pass finds the mask again from the seed, and a checkpoint from the state before
//! it.

use super::{Compute, record, working};
use crate::kernels::adapted::Dropout;
use crate::kernels::buffer::{Cpu, tensor};
use crate::kernels::simd::Element;
use candle_core::{Result, Tensor};
use std::cell::Cell;

thread_local! {
    /// The state from which the next mask's seed comes. Each thread has its own, so that another
    /// thread's forward pass does not change the masks of a seeded one.
    static STATE: Cell<u64> = Cell::new(rand::random());
}

/// Makes the dropout of the low-rank branches repeatable: after the same seed, the same forward
/// passes of this thread draw the same masks. It holds on the CPU. Without a seed masks differ from
/// run to run.
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

/// Drops numbers of x and divides the others by the probability to be kept.
pub(crate) fn dropout(xs: &Tensor, probability: f64) -> Result<Tensor> {
    let Some(mask) = mask(probability) else {
        return Ok(xs.clone());
    };
    let apply = move |xs: &Tensor| -> Result<Tensor> {
        let dropped = match Compute::of(xs) {
            Compute::F32 => on_cpu::<f32>(&working(xs)?, mask)?,
            _ => on_cpu::<f64>(xs, mask)?,
        };
        dropped.to_dtype(xs.dtype())
    };
    // Candle draws the masks of other devices; no seed of this thread reaches them.
    if Compute::of(xs) == Compute::Tensors {
        if probability >= 1.0 {
            return xs.affine(0.0, 0.0);
        }
        return candle_nn::ops::dropout(xs, probability as f32);
    }
    let value = apply(&xs.detach())?;
    record("dropout", [xs], value, move |grad, _| {
        Ok([Some(apply(grad)?)])
    })
}

fn on_cpu<T: Element>(xs: &Tensor, mask: Dropout) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    let mut values = Cpu::<T>::of(&xs)?.to_vec();
    mask.apply(&mut values, 0);
    tensor(values, xs.shape())
}

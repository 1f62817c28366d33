//! Dropout whose mask can be drawn again.

use super::{Compute, record, working};
use crate::kernels::adapted::Dropout;
use crate::kernels::buffer::{Cpu, tensor};
use crate::kernels::simd::Element;
use candle_core::{Result, Tensor};
use std::cell::Cell;

thread_local! {
    /// The state that the next mask's seed is drawn from.
    static STATE: Cell<u64> = Cell::new(rand::random());
}

/// Makes the dropout of this thread's following forward passes repeatable: that of the low-rank
/// branches on the CPU. Without it masks differ from run to run.
pub fn seed_dropout(seed: u64) {
    STATE.set(seed);
}

/// The state of the masks, to draw the same ones again with [`seed_dropout`].
pub(crate) fn dropout_state() -> u64 {
    STATE.get()
}

/// A mask to be drawn, if there is anything to drop.
pub(crate) fn mask(probability: f64) -> Option<Dropout> {
    if probability <= 0.0 {
        return None;
    }
    let seed = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(seed);
    Some(Dropout::new(probability, seed))
}

/// x with numbers dropped, the others divided by the probability to be kept.
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
    if Compute::of(xs) == Compute::Tensors {
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

//! Data that is held out of training.

use crate::{Error, Result};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;

/// Splits items into those to train with and those held out: a share of all, rounded, but at least one
/// of each if there are two. The seed decides which; both keep their order.
///
/// ```
/// let (train, held_out) = lora::data::split((0..10).collect::<Vec<i32>>(), 0.2, 7)?;
/// assert_eq!((train.len(), held_out.len()), (8, 2));
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// [`Error::Data`] if the share is not from 0 to 1. With 0 nothing is held out, with 1 all.
pub fn split<T>(items: Vec<T>, share: f64, seed: u64) -> Result<(Vec<T>, Vec<T>)> {
    if !(0.0..=1.0).contains(&share) {
        let problem = format!("the share that is held out is {share}: it must be from 0 to 1");
        return Err(Error::Data(vec![problem]));
    }
    let count = items.len();
    let mut held_out = (share * count as f64).round() as usize;
    if count > 1 && share > 0.0 && share < 1.0 {
        held_out = held_out.clamp(1, count - 1);
    }
    let mut places: Vec<usize> = (0..count).collect();
    places.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut is_held_out = vec![false; count];
    for &place in &places[..held_out] {
        is_held_out[place] = true;
    }
    let (mut train, mut rest) = (Vec::new(), Vec::new());
    for (item, is_held_out) in items.into_iter().zip(is_held_out) {
        match is_held_out {
            true => rest.push(item),
            false => train.push(item),
        }
    }
    Ok((train, rest))
}

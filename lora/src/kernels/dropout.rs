//! Dropout that needs no memory: the seed and a number's place decide whether the number is dropped, so
//! that the backward pass finds the same mask.

use super::simd::{Element, run};
use super::{CHUNK, buffer::buffer};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// A mask of dropped numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    seed: u64,
    /// A number whose hash is below is dropped.
    threshold: u32,
    /// The factor on kept numbers: 1 over the probability to be kept.
    factor: f64,
}

impl Dropout {
    /// `probability` is in 0..=1. With 1 every number becomes zero.
    pub(crate) fn new(probability: f64, seed: u64) -> Self {
        Self {
            seed,
            threshold: (probability * 2f64.powi(32)) as u32,
            factor: match probability < 1.0 {
                true => 1.0 / (1.0 - probability),
                false => 0.0,
            },
        }
    }

    /// The factor on kept numbers.
    pub(crate) fn factor(&self) -> f64 {
        self.factor
    }

    /// 1 for each number of a tensor that is kept, else 0: for devices that have no kernel here.
    pub(crate) fn kept(&self, count: usize) -> Vec<u8> {
        let places = (0..count as u64).into_par_iter();
        places.map(|place| u8::from(self.keeps(place))).collect()
    }

    /// The numbers of a tensor after dropout, on all threads.
    pub(crate) fn of<T: Element>(&self, x: &[T]) -> Vec<T> {
        let mut y = buffer(x.len());
        let chunks = x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK));
        chunks.enumerate().for_each(|(chunk, (x, y))| {
            self.apply(x, y, chunk * CHUNK);
        });
        y
    }

    /// y = drop(x), for numbers of which the first has this place in its tensor.
    pub(crate) fn apply<T: Element>(&self, x: &[T], y: &mut [T], start: usize) {
        run(Apply::<_, false> {
            dropout: *self,
            x,
            y,
            start,
        });
    }

    /// x = drop(x), as [`apply`](Self::apply).
    pub(crate) fn in_place<T: Element>(&self, x: &mut [T], start: usize) {
        run(InPlace {
            dropout: *self,
            x,
            start,
        });
    }

    /// y += drop(x), as [`apply`](Self::apply).
    pub(crate) fn add<T: Element>(&self, x: &[T], y: &mut [T], start: usize) {
        run(Apply::<_, true> {
            dropout: *self,
            x,
            y,
            start,
        });
    }

    /// The number of this place after dropout; `factor` is the dropout's own.
    #[inline(always)]
    fn value<T: Element>(&self, x: T, place: u64, factor: T) -> T {
        match self.keeps(place) {
            true => x * factor,
            false => T::ZERO,
        }
    }

    #[inline(always)]
    fn keeps(&self, place: u64) -> bool {
        hash(self.seed ^ place) >= self.threshold
    }
}

/// y = drop(x), or y += drop(x) with `ADD`.
struct Apply<'a, T, const ADD: bool> {
    dropout: Dropout,
    x: &'a [T],
    y: &'a mut [T],
    start: usize,
}

impl<T: Element, const ADD: bool> WithSimd for Apply<'_, T, ADD> {
    type Output = ();

    /// A plain loop, which the compiler turns into the instructions that it is compiled for.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        assert_eq!(self.x.len(), self.y.len());
        let factor = T::of(self.dropout.factor);
        let places = self.start as u64..;
        for ((&x, y), place) in self.x.iter().zip(self.y).zip(places) {
            let value = self.dropout.value(x, place, factor);
            *y = if ADD { *y + value } else { value };
        }
    }
}

/// x = drop(x)
struct InPlace<'a, T> {
    dropout: Dropout,
    x: &'a mut [T],
    start: usize,
}

impl<T: Element> WithSimd for InPlace<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let factor = T::of(self.dropout.factor);
        for (x, place) in self.x.iter_mut().zip(self.start as u64..) {
            *x = self.dropout.value(*x, place, factor);
        }
    }
}

/// The finaliser of MurmurHash3, a bijection that mixes all bits.
#[inline(always)]
fn hash(mut x: u64) -> u32 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (x >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::super::simd::testing::{assert_close, at_every_level, values};
    use super::*;

    fn check<T: Element>(count: usize) {
        let dropout = Dropout::new(0.3, 7);
        let x: Vec<T> = values(count, 1);
        let kept = dropout.kept(count);
        let expected = x
            .iter()
            .zip(kept)
            .map(|(x, kept)| x.to_f64() * f64::from(kept) / 0.7);
        let expected: Vec<f64> = expected.collect();
        at_every_level(|level| {
            let what = format!("{count} {level:?}");
            assert_close(&what, &dropout.of(&x), &expected, 1e-7);
            let mut y = x.clone();
            dropout.in_place(&mut y[count / 3..], count / 3);
            assert_close(&what, &y[count / 3..], &expected[count / 3..], 1e-7);
            // In parts, and added.
            let (half, mut y) = (count / 2, vec![T::ONE; count]);
            let (first, second) = y.split_at_mut(half);
            dropout.add(&x[half..], second, half);
            dropout.apply(&x[..half], first, 0);
            let added = expected.iter().enumerate();
            let added: Vec<f64> = added.map(|(i, y)| y + f64::from(i >= half)).collect();
            assert_close(&what, &y, &added, 1e-7);
        });
    }

    #[test]
    fn every_level_drops_the_same() {
        for count in [0, 1, 7, 16, 33, CHUNK, 3 * CHUNK + 5] {
            check::<f32>(count);
            check::<f64>(count);
        }
    }

    /// The share of dropped numbers, and of dropped pairs, is that of independent draws.
    #[test]
    fn masks_look_like_chance() {
        let count = 1 << 20;
        for (probability, seed) in [(0.1, 1), (0.5, 2), (0.9, 3)] {
            let [kept, other] =
                [seed, seed + 1].map(|seed| Dropout::new(probability, seed).kept(count));
            let share = |pairs: &mut dyn Iterator<Item = (u8, u8)>| {
                let both = pairs.filter(|&(a, b)| a == 0 && b == 0).count();
                both as f64 / count as f64
            };
            let dropped = kept.iter().filter(|&&kept| kept == 0).count() as f64 / count as f64;
            // Five standard deviations.
            let far = 5.0 * (0.25 / count as f64).sqrt();
            assert!((dropped - probability).abs() < far, "{dropped}");
            let neighbours = share(&mut kept.iter().copied().zip(kept[1..].iter().copied()));
            let masks = share(&mut kept.iter().copied().zip(other.iter().copied()));
            for pairs in [neighbours, masks] {
                assert!((pairs - probability * probability).abs() < far, "{pairs}");
            }
        }
    }
}

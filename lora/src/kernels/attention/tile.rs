//! The work on a tile of scores between the matrix products.

use crate::kernels::simd::{Element, Vector};
use crate::kernels::softmax::{dot, exponentials, largest, scale};
use pulp::{Simd, WithSimd};

/// The shift of scores before the exponential. A shift of −∞ would turn masked scores into NaN.
#[inline(always)]
pub(super) fn shift<T: Element>(largest: T) -> T {
    if largest == T::of(f64::NEG_INFINITY) {
        T::ZERO
    } else {
        largest
    }
}

/// Turns scores s into cap·tanh(s / cap), and computes the derivative of that function.
pub(super) struct Cap<'a, T> {
    pub(super) scores: &'a mut [T],
    pub(super) slopes: Option<&'a mut [T]>,
    pub(super) cap: f64,
}

impl<T: Element> WithSimd for Cap<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let one = Vector::<T, S>::splat(simd, T::ONE);
        let cap = one.all(self.cap);
        let tanh = |score: &[T]| Vector::load(simd, score).tanh_of(1.0 / self.cap);
        match self.slopes {
            None => {
                for score in self.scores.chunks_mut(lanes) {
                    (tanh(score) * cap).store(score);
                }
            }
            Some(slopes) => {
                let scores = self.scores.chunks_mut(lanes);
                for (score, slope) in scores.zip(slopes.chunks_mut(lanes)) {
                    let tanh = tanh(score);
                    (tanh * cap).store(score);
                    (one - tanh * tanh).store(slope);
                }
            }
        }
    }
}

/// One step of the running softmax. Scores become e^(score − largest so far). Everything gathered
/// with the previous largest is scaled to the new one.
pub(super) struct Step<'a, T> {
    pub(super) scores: &'a mut [T],
    pub(super) columns: usize,
    /// The largest score so far, by rows.
    pub(super) largest: &'a mut [T],
    /// Σ e^(score − largest) so far, by rows.
    pub(super) sums: &'a mut [T],
    /// Σ e^(score − largest)·value so far, by rows; nothing in the first step.
    pub(super) gathered: &'a mut [T],
}

impl<T: Element> WithSimd for Step<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.gathered.len() / self.sums.len();
        let rows = self.scores.chunks_exact_mut(self.columns);
        let rows = rows.zip(self.largest).zip(self.sums);
        for (row, ((scores, before), sum)) in rows.enumerate() {
            let mut now = largest(simd, scores);
            if *before > now {
                now = *before;
            }
            let factor = (*before - shift(now)).exponential();
            *sum = *sum * factor + exponentials(simd, scores, shift(now));
            *before = now;
            let gathered = &mut self.gathered[row * width..][..width];
            if factor != T::ONE {
                scale(simd, gathered, factor);
            }
        }
    }
}

/// Scores to probabilities, e^(score − log-sum-exp of the row).
pub(super) struct Probabilities<'a, T> {
    pub(super) scores: &'a mut [T],
    pub(super) columns: usize,
    pub(super) log_sums: &'a [T],
}

impl<T: Element> WithSimd for Probabilities<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.scores.chunks_exact_mut(self.columns);
        for (scores, &log_sum) in rows.zip(self.log_sums) {
            let log_sum = Vector::<T, S>::splat(simd, log_sum);
            for score in scores.chunks_mut(T::lanes::<S>()) {
                (Vector::load(simd, score) - log_sum).exp().store(score);
            }
        }
    }
}

/// Σ grad·output of rows that lie `step` apart. It equals Σ grad·p over the probabilities, without
/// a pass over their tiles.
pub(super) struct Along<'a, T> {
    pub(super) grads: &'a [T],
    pub(super) outputs: &'a [T],
    pub(super) step: usize,
    pub(super) width: usize,
    pub(super) along: &'a mut [T],
}

impl<T: Element> WithSimd for Along<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self
            .grads
            .chunks(self.step)
            .zip(self.outputs.chunks(self.step));
        for ((grad, output), along) in rows.zip(self.along) {
            *along = dot(simd, &grad[..self.width], &output[..self.width]);
        }
    }
}

/// Turns the gradients of probabilities p into those of scores, p·(grad − Σ grad·p), in place.
pub(super) struct OnScores<'a, T> {
    pub(super) grads: &'a mut [T],
    pub(super) probabilities: &'a [T],
    pub(super) columns: usize,
    /// Σ grad·p, by rows; computed here if missing, where the tile holds all keys that a row sees.
    pub(super) along: Option<&'a [T]>,
    /// The derivative of a cap.
    pub(super) slopes: Option<&'a [T]>,
}

impl<T: Element> WithSimd for OnScores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let rows = self.grads.chunks_exact_mut(self.columns);
        let rows = rows.zip(self.probabilities.chunks_exact(self.columns));
        for (row, (grads, probabilities)) in rows.enumerate() {
            let along = match self.along {
                Some(along) => along[row],
                None => dot(simd, grads, probabilities),
            };
            let along = Vector::<T, S>::splat(simd, along);
            let columns = grads.chunks_mut(lanes).zip(probabilities.chunks(lanes));
            for (grad, probability) in columns {
                let on_score = Vector::load(simd, grad) - along;
                (on_score * Vector::load(simd, probability)).store(grad);
            }
        }
        if let Some(slopes) = self.slopes {
            for (grad, slope) in self.grads.chunks_mut(lanes).zip(slopes.chunks(lanes)) {
                let grad_here = Vector::<T, S>::load(simd, grad);
                (grad_here * Vector::load(simd, slope)).store(grad);
            }
        }
    }
}

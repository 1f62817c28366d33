//! The cross-entropy of rows of logits, and its gradient in the place of the logits.

use super::simd::{Element, Vector, run};
use super::softmax::largest;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// The class of a row, or none where the row does not count.
pub(crate) type Label = Option<u32>;

/// What is asked of a row beside its label.
#[derive(Clone, Copy)]
pub(crate) struct Criterion<'a, T> {
    /// The share of the label that goes to all classes alike, in 0..=1.
    pub(crate) smoothing: f64,
    /// A weight for each class; 1 without.
    pub(crate) weights: Option<&'a [T]>,
    /// The factor on the logits, before the cap.
    pub(crate) scale: f64,
    /// c in c·tanh(logit / c).
    pub(crate) soft_cap: Option<f64>,
}

/// Numbers whose sum is taken in the element's own precision, before it is added in f64.
const SUM: usize = 4096;

impl<T: Element> Criterion<'_, T> {
    /// The weight of a label's row in the mean.
    pub(crate) fn weight(&self, label: u32) -> f64 {
        let weight = |weights: &[T]| weights[label as usize].to_f64();
        self.weights.map_or(1.0, weight)
    }

    /// The sum of the rows' losses; a row without a label has none. With `factor`, each logit becomes
    /// the gradient of that factor times the sum. Without, the logits end up as any numbers.
    ///
    /// Rows go to all threads. The sum comes out the same however many there are.
    pub(crate) fn rows(&self, logits: &mut [T], labels: &[Label], factor: Option<f64>) -> f64 {
        let classes = logits.len().checked_div(labels.len()).unwrap_or(0);
        if classes == 0 {
            return 0.0;
        }
        let rows = logits.par_chunks_mut(classes).zip(labels);
        let losses = rows.map(|(logits, label)| match label {
            None => {
                logits.fill(T::ZERO);
                0.0
            }
            Some(label) => run(Row {
                criterion: *self,
                logits,
                label: *label,
                factor,
            }),
        });
        losses.collect::<Vec<f64>>().into_iter().sum()
    }
}

struct Row<'a, T> {
    criterion: Criterion<'a, T>,
    logits: &'a mut [T],
    label: u32,
    factor: Option<f64>,
}

impl<T: Element> WithSimd for Row<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self {
            criterion,
            logits,
            label,
            factor,
        } = self;
        criterion.shape(simd, logits);
        let highest = largest(simd, logits);
        let exponentials = blockwise(logits, |block| sum_of_exponentials(simd, block, highest));
        let normaliser = highest.to_f64() + exponentials.ln();

        let weight = criterion.weight(label);
        let label = label as usize;
        let share = criterion.smoothing / logits.len() as f64;
        let on_label = weight * (1.0 - criterion.smoothing);
        let mut loss = on_label * (normaliser - logits[label].to_f64());
        let mut all = on_label;
        if share > 0.0 {
            let (total, along) = match criterion.weights {
                None => (
                    logits.len() as f64,
                    blockwise(logits, |block| sum(simd, block)),
                ),
                Some(weights) => (
                    weights.iter().map(|weight| weight.to_f64()).sum(),
                    products(simd, logits, weights),
                ),
            };
            loss += share * (total * normaliser - along);
            all += share * total;
        }
        if let Some(factor) = factor {
            let slope = Slope {
                normaliser,
                of_all: factor * all,
                of_each: factor * share,
            };
            let of_label = factor * on_label * criterion.slope(logits[label].to_f64());
            criterion.differentiate(simd, logits, slope);
            logits[label] = T::of(logits[label].to_f64() - of_label);
        }
        loss
    }
}

/// The gradient of a logit z of class c before the label's part is taken off:
/// of_all·e^(z − normaliser) − of_each·weight(c).
#[derive(Clone, Copy)]
struct Slope {
    normaliser: f64,
    of_all: f64,
    of_each: f64,
}

impl<T: Element> Criterion<'_, T> {
    /// Scales and caps the logits.
    #[inline(always)]
    fn shape<S: Simd>(&self, simd: S, logits: &mut [T]) {
        let scale = Vector::<T, S>::splat(simd, T::of(self.scale));
        match self.soft_cap {
            None if self.scale == 1.0 => {}
            None => {
                for z in logits.chunks_mut(T::lanes::<S>()) {
                    (Vector::load(simd, z) * scale).store(z);
                }
            }
            Some(cap) => {
                let factor = self.scale / cap;
                let cap = scale.all(cap);
                for z in logits.chunks_mut(T::lanes::<S>()) {
                    (cap * Vector::load(simd, z).tanh_of(factor)).store(z);
                }
            }
        }
    }

    /// The derivative of a shaped logit by the one before.
    #[inline(always)]
    fn slope(&self, shaped: f64) -> f64 {
        let capped = self.soft_cap.map_or(0.0, |cap| (shaped / cap).powi(2));
        self.scale * (1.0 - capped)
    }

    #[inline(always)]
    fn differentiate<S: Simd>(&self, simd: S, logits: &mut [T], slope: Slope) {
        let lanes = T::lanes::<S>();
        let splat = |value: f64| Vector::<T, S>::splat(simd, T::of(value));
        let (normaliser, of_all) = (splat(slope.normaliser), splat(slope.of_all));
        let (of_each, scale) = (splat(slope.of_each), splat(self.scale));
        // −scale / cap²: the slope is scale + z²·bend.
        let bend = self.soft_cap.map(|cap| splat(-self.scale / (cap * cap)));
        for (index, z) in logits.chunks_mut(lanes).enumerate() {
            let value = Vector::load(simd, z);
            let mut grad = (value - normaliser).exp() * of_all;
            if slope.of_each != 0.0 {
                grad = match self.weights {
                    None => grad - of_each,
                    Some(weights) => {
                        let weights = &weights[index * lanes..][..z.len()];
                        grad - of_each * Vector::load(simd, weights)
                    }
                };
            }
            grad = match bend {
                Some(bend) => grad * (value * value).mul_add(bend, scale),
                None => grad * scale,
            };
            grad.store(z);
        }
    }
}

/// The sum over blocks of a row, each summed by `of_block` in the element's precision.
#[inline(always)]
fn blockwise<T: Element>(row: &[T], of_block: impl Fn(&[T]) -> T) -> f64 {
    row.chunks(SUM).map(|block| of_block(block).to_f64()).sum()
}

#[inline(always)]
fn sum_of_exponentials<T: Element, S: Simd>(simd: S, row: &[T], shift: T) -> T {
    let (vectors, rest) = T::raw_split::<S>(row);
    let by = Vector::<T, S>::splat(simd, shift);
    let mut sum = Vector::zero(simd);
    for &raw in vectors {
        sum = sum + (Vector::new(simd, raw) - by).exp();
    }
    let rest = rest.iter().map(|&x| (x - shift).exponential());
    rest.fold(sum.sum(), |sum, x| sum + x)
}

#[inline(always)]
fn sum<T: Element, S: Simd>(simd: S, row: &[T]) -> T {
    let lanes = row.chunks(T::lanes::<S>());
    let zero = Vector::<T, S>::zero(simd);
    lanes.fold(zero, |sum, x| sum + Vector::load(simd, x)).sum()
}

/// Σ logit·weight
#[inline(always)]
fn products<T: Element, S: Simd>(simd: S, row: &[T], weights: &[T]) -> f64 {
    let blocks = row.chunks(SUM).zip(weights.chunks(SUM));
    blocks
        .map(|(row, weights)| super::softmax::dot(simd, row, weights).to_f64())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::simd::testing::{assert_close, at_every_level, values};
    use super::*;

    /// The definition, in f64 and one class at a time: the rows' losses summed, and the gradient of
    /// `factor` times the sum.
    fn definition<T: Element>(
        criterion: &Criterion<'_, T>,
        logits: &[T],
        labels: &[Label],
        factor: f64,
    ) -> (f64, Vec<f64>) {
        let classes = logits.len() / labels.len();
        let (mut sum, mut grads) = (0.0, Vec::new());
        for (row, &label) in logits.chunks(classes).zip(labels) {
            let Some(label) = label else {
                grads.extend(vec![0.0; classes]);
                continue;
            };
            let capped = |z: f64| criterion.soft_cap.map_or(z, |cap| cap * (z / cap).tanh());
            let z: Vec<f64> = row
                .iter()
                .map(|z| capped(z.to_f64() * criterion.scale))
                .collect();
            let total: f64 = z.iter().map(|z| z.exp()).sum();
            let likelihood = |class: usize| z[class] - total.ln();
            let share = |class: usize| {
                let on_label = if class == label as usize {
                    1.0 - criterion.smoothing
                } else {
                    0.0
                };
                let weight = criterion.weight(class as u32);
                weight * (on_label + criterion.smoothing / classes as f64)
            };
            let all: f64 = (0..classes).map(share).sum();
            for (class, z) in z.iter().enumerate() {
                sum -= share(class) * likelihood(class);
                let on_capped = all * likelihood(class).exp() - share(class);
                let bend = criterion.soft_cap.map_or(0.0, |cap| (z / cap).powi(2));
                grads.push(factor * on_capped * (1.0 - bend) * criterion.scale);
            }
        }
        (sum, grads)
    }

    fn check<T: Element>(classes: usize, tolerance: f64) {
        let logits: Vec<T> = values::<T>(4 * classes, 1)
            .into_iter()
            .map(|z| z * T::of(9.0))
            .collect();
        let weights: Vec<T> = values(classes, 2)
            .into_iter()
            .map(|w: T| w + T::of(1.5))
            .collect();
        let last = classes as u32 - 1;
        let labels = [Some(0), None, Some(last / 2), Some(last)];
        for (smoothing, weighted, scale, soft_cap) in [
            (0.0, false, 1.0, None),
            (0.1, false, 1.0, None),
            (0.0, true, 0.3, None),
            (0.4, true, 0.7, Some(3.0)),
        ] {
            let criterion = Criterion {
                smoothing,
                weights: weighted.then_some(&weights[..]),
                scale,
                soft_cap,
            };
            let (loss, grads) = definition(&criterion, &logits, &labels, -0.5);
            at_every_level(|level| {
                let what =
                    format!("{classes} {smoothing} {weighted} {scale} {soft_cap:?} {level:?}");
                let mut forward = logits.clone();
                let sum = criterion.rows(&mut forward, &labels, None);
                assert!(
                    (sum - loss).abs() <= tolerance * loss.abs().max(1.0),
                    "{what}: {sum} for {loss}"
                );
                let mut both = logits.clone();
                assert_eq!(
                    criterion.rows(&mut both, &labels, Some(-0.5)),
                    sum,
                    "{what}"
                );
                assert_close(&what, &both, &grads, tolerance);
            });
        }
    }

    #[test]
    fn every_level_follows_the_definition() {
        for classes in [1, 3, 7, 16, 17, 65, 10_000] {
            check::<f32>(classes, 3e-6);
            check::<f64>(classes, 1e-13);
        }
    }

    #[test]
    fn nan_is_not_lost() {
        let criterion = Criterion {
            smoothing: 0.0,
            weights: None,
            scale: 1.0,
            soft_cap: None,
        };
        at_every_level(|level| {
            for at in [0, 15, 16, 18] {
                let mut logits = [1f32; 19];
                logits[at] = f32::NAN;
                let loss = criterion.rows(&mut logits, &[Some(3)], Some(1.0));
                assert!(
                    loss.is_nan() && logits.iter().all(|z| z.is_nan()),
                    "{level:?} {at}"
                );
            }
        });
    }

    #[test]
    fn rows_without_classes_or_labels() {
        let criterion = Criterion::<f32> {
            smoothing: 0.0,
            weights: None,
            scale: 1.0,
            soft_cap: None,
        };
        assert_eq!(criterion.rows(&mut [], &[], Some(1.0)), 0.0);
        assert_eq!(criterion.rows(&mut [], &[None; 3], Some(1.0)), 0.0);
    }
}

//! DoRA's weight, V = W + s·B·A with each row at its own length, in passes over blocks of rows that stay
//! in a core's cache.

use super::buffer::buffer;
use super::low_rank::add_product;
use super::simd::{Element, run};
use super::sums::squares;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Numbers of V that one task makes.
const PART: usize = 1 << 15;

/// V by rows: W of `inputs` columns, A (rank, inputs), s·B (outputs, rank).
#[derive(Clone, Copy)]
pub(crate) struct Sum<'a, T> {
    pub(crate) weight: &'a [T],
    pub(crate) a: &'a [T],
    pub(crate) scaled_b: &'a [T],
    pub(crate) inputs: usize,
}

impl<T: Element> Sum<'_, T> {
    /// Rows of V in a part.
    fn rows(&self) -> usize {
        PART / self.inputs.max(1) + 1
    }

    /// Writes rows of V, from this one on.
    fn write(&self, first: usize, v: &mut [T]) {
        let rows = v.len() / self.inputs;
        let rank = self.a.len() / self.inputs;
        v.copy_from_slice(&self.weight[first * self.inputs..][..v.len()]);
        let b = &self.scaled_b[first * rank..][..rows * rank];
        add_product(v, b, self.a, self.inputs);
    }

    /// The norm of each row of V.
    pub(crate) fn norms(&self) -> Vec<T> {
        let (inputs, rows) = (self.inputs.max(1), self.rows());
        let outputs = self.weight.len() / inputs;
        let mut norms = buffer(outputs);
        let parts = norms.par_chunks_mut(rows).enumerate();
        parts.for_each_init(
            || buffer(rows * inputs),
            |v, (part, norms)| {
                let v = &mut v[..norms.len() * inputs];
                self.write(part * rows, v);
                run(Lengths { v, norms, inputs });
            },
        );
        norms
    }

    /// V with a factor on each row.
    pub(crate) fn scaled(&self, factors: &[T]) -> Vec<T> {
        let (inputs, rows) = (self.inputs.max(1), self.rows());
        let mut all = buffer(self.weight.len());
        let parts = all.par_chunks_mut(rows * inputs).enumerate();
        parts.for_each(|(part, v)| {
            self.write(part * rows, v);
            scale_rows(v, &factors[part * rows..], inputs);
        });
        all
    }
}

/// Multiplies each row by its factor.
pub(crate) fn scale_rows<T: Element>(values: &mut [T], factors: &[T], width: usize) {
    let rows = values.chunks_mut(width.max(1));
    rows.zip(factors)
        .for_each(|(row, &factor)| row.iter_mut().for_each(|value| *value *= factor));
}

struct Lengths<'a, T> {
    v: &'a [T],
    norms: &'a mut [T],
    inputs: usize,
}

impl<T: Element> WithSimd for Lengths<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (row, norm) in self.v.chunks(self.inputs).zip(self.norms) {
            *norm = T::of(squares(simd, row, T::ZERO).sqrt());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::testing::{assert_close, at_every_level, values};
    use super::*;

    fn check<T: Element>((outputs, inputs, rank): (usize, usize, usize), tolerance: f64) {
        let weight: Vec<T> = values(outputs * inputs, 1);
        let (a, b): (Vec<T>, Vec<T>) = (values(rank * inputs, 2), values(outputs * rank, 3));
        let factors: Vec<T> = values(outputs, 4);
        let mut v = Vec::new();
        for row in 0..outputs {
            v.extend((0..inputs).map(|column| {
                let terms =
                    (0..rank).map(|k| b[row * rank + k].to_f64() * a[k * inputs + column].to_f64());
                weight[row * inputs + column].to_f64() + terms.sum::<f64>()
            }));
        }
        let rows = || v.chunks(inputs);
        let norms: Vec<f64> = rows()
            .map(|row| row.iter().map(|v| v * v).sum::<f64>().sqrt())
            .collect();
        let scaled = rows().zip(&factors);
        let scaled: Vec<f64> = scaled
            .flat_map(|(row, factor)| row.iter().map(move |v| v * factor.to_f64()))
            .collect();
        let sum = Sum {
            weight: &weight,
            a: &a,
            scaled_b: &b,
            inputs,
        };
        at_every_level(|level| {
            let what = format!("{outputs}x{inputs}, rank {rank}, {level:?}");
            assert_close(&what, &sum.norms(), &norms, tolerance);
            assert_close(&what, &sum.scaled(&factors), &scaled, tolerance);
        });
    }

    #[test]
    fn every_level_follows_the_formula() {
        for shape in [
            (1, 1, 1),
            (5, 3, 2),
            (7, 17, 8),
            (40, 1000, 3),
            (300, 130, 16),
        ] {
            check::<f32>(shape, 1e-5);
            check::<f64>(shape, 1e-13);
        }
    }
}

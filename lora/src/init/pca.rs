//! Principal components of inputs that come batch by batch.

use crate::Result;
use crate::linalg::{self, Svd};
use faer::{Mat, MatRef};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// An incremental principal component analysis. It is PEFT's, which follows scikit-learn's.
#[derive(Clone, Debug)]
pub(super) struct IncrementalPca {
    /// The number of components to find.
    wanted: usize,
    /// The width of the inputs.
    width: usize,
    /// Rows of inputs that wait until there are as many rows as components.
    pending: Vec<f64>,
    fitted: Option<Fitted>,
    /// For each component, whether the last batch changed it by less than the threshold allows.
    converged: Vec<bool>,
}

#[derive(Clone, Debug)]
struct Fitted {
    /// (wanted, width): unit vectors.
    components: Mat<f64>,
    singular_values: Vec<f64>,
    /// The share of the inputs' variance along each component.
    ratios: Vec<f64>,
    mean: Vec<f64>,
    variance: Vec<f64>,
    rows: f64,
}

impl IncrementalPca {
    pub(super) fn new(wanted: usize, width: usize) -> Self {
        Self {
            wanted,
            width,
            pending: Vec::new(),
            fitted: None,
            converged: vec![false; wanted],
        }
    }

    /// Takes a batch into account: rows of inputs, row-major.
    pub(super) fn fit(&mut self, batch: Vec<f64>, threshold: f64) -> Result<()> {
        self.pending.extend(batch);
        let rows = self.pending.len() / self.width;
        if rows == 0 || (self.fitted.is_none() && rows < self.wanted) {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.pending);
        let batch = linalg::from_values(&batch, rows, self.width)?;
        let fitted = self.updated(batch.as_ref())?;
        if let Some(before) = &self.fitted {
            let (before, now) = (&before.components, &fitted.components);
            self.converged = (0..self.wanted)
                .map(|i| before.row(i) * now.row(i).transpose() >= threshold)
                .collect();
        }
        self.fitted = Some(fitted);
        Ok(())
    }

    fn updated(&self, batch: MatRef<'_, f64>) -> Result<Fitted> {
        let (count, width) = (batch.nrows() as f64, self.width);
        let column = |j: usize| batch.col(j).iter();
        let mean: Vec<f64> = (0..width).map(|j| column(j).sum::<f64>() / count).collect();
        let squares = |j: usize| column(j).map(|x| (x - mean[j]).powi(2)).sum::<f64>();
        let variance: Vec<f64> = (0..width).map(|j| squares(j) / count).collect();
        let centred = |i: usize, j: usize| batch[(i, j)] - mean[j];

        let Some(old) = &self.fitted else {
            let stacked = Mat::from_fn(batch.nrows(), width, centred);
            return self.decomposed(stacked, mean, variance, count);
        };
        let rows = old.rows + count;
        // The old components and the step between the means stand for all earlier rows, so that no
        // inputs need to be kept.
        let step = (old.rows / rows * count).sqrt();
        let (kept, new) = (self.wanted, batch.nrows());
        let stacked = Mat::from_fn(kept + new + 1, width, |i, j| match i {
            i if i < kept => old.singular_values[i] * old.components[(i, j)],
            i if i < kept + new => centred(i - kept, j),
            _ => step * (old.mean[j] - mean[j]),
        });
        let merged = |of_old: &[f64], of_new: &[f64]| -> Vec<f64> {
            let both = of_old.iter().zip(of_new);
            both.map(|(a, b)| (a * old.rows + b * count) / rows)
                .collect()
        };
        let mut all_variance = merged(&old.variance, &variance);
        for (j, variance) in all_variance.iter_mut().enumerate() {
            *variance += (old.mean[j] - mean[j]).powi(2) * (old.rows / rows) * (count / rows);
        }
        self.decomposed(stacked, merged(&old.mean, &mean), all_variance, rows)
    }

    fn decomposed(
        &self,
        stacked: Mat<f64>,
        mean: Vec<f64>,
        variance: Vec<f64>,
        rows: f64,
    ) -> Result<Fitted> {
        let wanted = self.wanted;
        // A fixed seed: the same inputs always give the same components.
        let mut rng = ChaCha8Rng::seed_from_u64(42);
        let Svd { s, v, .. } = linalg::svd_low_rank(stacked.as_ref(), 2 * wanted, 4, &mut rng)?;
        let total = variance.iter().sum::<f64>() * rows;
        let ratio = |s: &f64| if total > 0.0 { s * s / total } else { 0.0 };
        // A component's sign is arbitrary, but has to be the same after each batch. The largest
        // value is made positive, as in scikit-learn.
        let largest = |i: usize| {
            let values = v.col(i).iter().copied();
            values.fold(
                0.0,
                |most: f64, x| if x.abs() > most.abs() { x } else { most },
            )
        };
        let signs: Vec<f64> = (0..wanted).map(|i| largest(i).signum()).collect();
        Ok(Fitted {
            components: Mat::from_fn(wanted, self.width, |i, j| v[(j, i)] * signs[i]),
            ratios: s[..wanted].iter().map(ratio).collect(),
            singular_values: s[..wanted].to_vec(),
            mean,
            variance,
            rows,
        })
    }

    /// While there are too few rows for a first fit: how many there are, and how many are needed.
    pub(super) fn missing(&self) -> Option<(usize, usize)> {
        let rows = self.pending.len() / self.width;
        self.fitted.is_none().then_some((rows, self.wanted))
    }

    /// The share of the inputs' variance along each component, the largest first.
    pub(super) fn ratios(&self) -> &[f64] {
        self.fitted.as_ref().map_or(&[], |fitted| &fitted.ratios)
    }

    /// True if the last batch changed each of the first components by less than the threshold
    /// allows.
    pub(super) fn has_converged(&self, components: usize) -> bool {
        self.converged.iter().take(components).all(|c| *c)
    }

    /// The first components as rows. Whitening divides each by the root of its singular value.
    pub(super) fn components(&self, count: usize, whiten: bool) -> Option<Mat<f64>> {
        let fitted = self.fitted.as_ref()?;
        let size = |i: usize| match whiten {
            true => fitted.singular_values[i].sqrt(),
            false => 1.0,
        };
        let value = |i, j| fitted.components[(i, j)] / size(i);
        Some(Mat::from_fn(count.min(self.wanted), self.width, value))
    }
}

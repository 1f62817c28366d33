//! [`Product`]: the update s·B·A of a layer, through its factors. Nothing here forms the update.

use crate::adapter::update;
use crate::linalg::{self, Svd};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use faer::Mat;
use serde::Serialize;

/// Which rank a low-rank matrix is cut to.
///
/// ```
/// use lora::peft::RankChoice;
///
/// // The spectrum 3, 2, 1 has the energy 9 + 4 + 1: two values hold 13/14 of it.
/// assert_eq!(RankChoice::Energy(0.9).of(&[3.0, 2.0, 1.0]), 2);
/// assert_eq!(RankChoice::Rank(8).of(&[3.0, 2.0, 1.0]), 3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RankChoice {
    /// This rank for every layer, or the rank that the layer's update has if that is less.
    Rank(usize),
    /// For each layer the least rank that keeps this share of its energy, the sum of the squares of
    /// the singular values; above 0 and at most 1.
    Energy(f64),
}

impl RankChoice {
    /// The rank for singular values, the largest first: at least 1, at most their number.
    pub fn of(self, singular_values: &[f64]) -> usize {
        let total = energy(singular_values);
        self.within(singular_values, total)
            .unwrap_or(singular_values.len())
            .max(1)
    }

    /// The rank, if these first singular values of a matrix of this energy suffice to tell.
    pub(super) fn within(self, first: &[f64], total: f64) -> Option<usize> {
        match self {
            Self::Rank(rank) => Some(rank.min(first.len())),
            Self::Energy(share) => {
                // Rounding must not ask for more than there is.
                let wanted = share * total * (1.0 - 1e-12);
                let mut sum = 0.0;
                let place = first.iter().position(|value| {
                    sum += value * value;
                    sum >= wanted
                });
                place.map(|place| place + 1)
            }
        }
    }

    /// # Errors
    /// If the rank is 0 or the share is not in (0, 1].
    pub(super) fn check(self) -> Result<()> {
        let problem = match self {
            Self::Rank(0) => "the rank is 0: it must be at least 1".into(),
            Self::Energy(share) if !(share > 0.0 && share <= 1.0) => {
                format!("the share of energy is {share}: it must be above 0 and at most 1")
            }
            _ => return Ok(()),
        };
        Err(Error::Config(vec![problem]))
    }
}

/// The sum of the squares.
pub(super) fn energy(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum()
}

/// What the singular values of an update tell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Spectrum {
    /// The Frobenius norm of the update.
    pub norm: f64,
    /// The largest singular value.
    pub largest: f64,
    /// exp of the entropy of the singular values' shares (Roy and Vetterli): r for r equal values,
    /// 1 for a single one, 0 for none.
    pub effective_rank: f64,
    /// How many singular values hold 99 % of the energy, the sum of the squares.
    pub rank_99: usize,
}

impl Spectrum {
    /// Of singular values, the largest first.
    pub(super) fn of(values: &[f64]) -> Self {
        let sum: f64 = values.iter().sum();
        let shares = values.iter().map(|value| value / sum);
        let entropy: f64 = shares.filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
        let is_zero = sum == 0.0;
        Self {
            norm: energy(values).sqrt(),
            largest: values.first().copied().unwrap_or(0.0),
            effective_rank: if is_zero { 0.0 } else { entropy.exp() },
            rank_99: if is_zero {
                0
            } else {
                RankChoice::Energy(0.99).of(values)
            },
        }
    }
}

/// s·B·A in blocks: one for most layers, one for each group of a convolution or for each expert.
pub(super) struct Product {
    scaling: f64,
    /// B (out, r) and A (r, in) of each block, a kernel's places among the inputs.
    blocks: Vec<(Mat<f64>, Mat<f64>)>,
    of_experts: bool,
}

impl Product {
    /// Of A (r, in, ..) and B (out, r / groups, ..), or of those of as many experts.
    ///
    /// # Errors
    /// If the shapes do not fit, or a value is not finite.
    pub fn of(a: &Tensor, b: &Tensor, scaling: f64, experts: usize) -> Result<Self> {
        let misfit = || {
            let (a, b) = (a.dims(), b.dims());
            Error::layer("", format!("A of shape {a:?} and B of {b:?} do not fit"))
        };
        if a.rank() < 2 || b.rank() < 2 || a.elem_count() == 0 || b.elem_count() == 0 {
            return Err(misfit());
        }
        let (a_flat, b_flat) = (a.flatten_from(1)?, b.flatten_from(1)?);
        let ((rows, _), (out, width)) = (a_flat.dims2()?, b_flat.dims2()?);
        let mut blocks = Vec::new();
        if experts > 1 {
            if rows != width || rows % experts != 0 {
                return Err(misfit());
            }
            for expert in 0..experts {
                let (a, b) = update::of_expert(&a_flat, &b_flat, expert, experts)?;
                blocks.push((linalg::matrix(&b)?, linalg::matrix(&a)?));
            }
        } else {
            if rows % width != 0 || out % (rows / width) != 0 {
                return Err(misfit());
            }
            let groups = rows / width;
            for (a, b) in a_flat
                .chunk(groups, 0)?
                .iter()
                .zip(b_flat.chunk(groups, 0)?)
            {
                blocks.push((linalg::matrix(&b)?, linalg::matrix(a)?));
            }
        }
        Ok(Self {
            scaling,
            blocks,
            of_experts: experts > 1,
        })
    }

    /// The singular values, the largest first. Those of a convolution with groups, and of experts,
    /// are the values of all blocks.
    pub fn singular_values(&self) -> Result<Vec<f64>> {
        let mut values = Vec::new();
        for block in &self.blocks {
            let own = decomposed(block)?.s.into_iter();
            values.extend(own.map(|value| value * self.scaling.abs()));
        }
        values.sort_by(|a, b| b.total_cmp(a));
        Ok(values)
    }

    /// The Frobenius norm.
    pub fn norm(&self) -> Result<f64> {
        Ok(energy(&self.singular_values()?).sqrt())
    }

    /// A multiple of the update.
    pub fn times(mut self, factor: f64) -> Self {
        self.scaling *= factor;
        self
    }

    /// The difference from another update of the same layer; `None` if the shapes differ.
    pub fn minus(&self, other: &Self) -> Option<Self> {
        let pairs = || self.blocks.iter().zip(&other.blocks);
        let sizes = |(b, a): &(Mat<f64>, Mat<f64>)| (b.nrows(), a.ncols());
        let fits = self.blocks.len() == other.blocks.len()
            && pairs().all(|(one, two)| sizes(one) == sizes(two));
        fits.then(|| Self {
            scaling: 1.0,
            blocks: pairs()
                .map(|((b, a), (b2, a2))| {
                    let (k, all) = (b.ncols(), b.ncols() + b2.ncols());
                    let left = Mat::from_fn(b.nrows(), all, |row, col| match col < k {
                        true => self.scaling * b[(row, col)],
                        false => -other.scaling * b2[(row, col - k)],
                    });
                    let below = Mat::from_fn(all, a.ncols(), |row, col| match row < k {
                        true => a[(row, col)],
                        false => a2[(row - k, col)],
                    });
                    (left, below)
                })
                .collect(),
            of_experts: self.of_experts,
        })
    }

    /// A and B of another rank for the same scaling, in these tensors' shapes: the first singular
    /// values and vectors of each block, their weight shared between A and B.
    ///
    /// # Errors
    /// If a block has no decomposition.
    pub fn cut(&self, choice: RankChoice, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
        let blocks = self.blocks.iter().map(decomposed);
        let blocks: Vec<Svd> = blocks.collect::<Result<_>>()?;
        // All blocks have one rank: the largest that one of these needs.
        let ranks = blocks.iter().map(|svd| choice.of(&svd.s));
        let rank = ranks.max().unwrap_or(1);
        let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
        for svd in &blocks {
            let (u, v) = halves(svd, rank);
            let dtype = |like: &Tensor| like.dtype();
            all_a.push(linalg::tensor(v.transpose(), dtype(a), &Device::Cpu)?);
            all_b.push(linalg::tensor(u.as_ref(), dtype(b), &Device::Cpu)?);
        }
        let new_a = Tensor::cat(&all_a, 0)?;
        let new_b = match self.of_experts {
            // Every expert's columns lie as far apart as there are experts.
            true => Tensor::stack(&all_b, 2)?.flatten_from(1)?,
            false => Tensor::cat(&all_b, 0)?,
        };
        let shaped = |tensor: Tensor, like: &Tensor, place: usize| {
            let mut dims = like.dims().to_vec();
            dims[place] = tensor.dim(place)?;
            tensor.reshape(dims)
        };
        Ok((shaped(new_a, a, 0)?, shaped(new_b, b, 1)?))
    }
}

fn decomposed((b, a): &(Mat<f64>, Mat<f64>)) -> Result<Svd> {
    linalg::svd_of_product(b.as_ref(), a.as_ref())
}

/// The first singular vectors of both sides, each times the root of its value. Beyond the values
/// that there are, zeros.
pub(super) fn halves(svd: &Svd, rank: usize) -> (Mat<f64>, Mat<f64>) {
    let half = |vectors: &Mat<f64>| {
        Mat::from_fn(vectors.nrows(), rank, |row, col| match svd.s.get(col) {
            Some(value) => vectors[(row, col)] * value.sqrt(),
            None => 0.0,
        })
    };
    (half(&svd.u), half(&svd.v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Form;
    use crate::init;
    use candle_core::DType;

    fn random(shape: &[usize], seed: u64) -> Tensor {
        let mut rng = init::rng(Some(seed), "");
        let values = linalg::random(1, shape.iter().product(), &mut rng);
        let values = linalg::tensor(values.as_ref(), DType::F64, &Device::Cpu).unwrap();
        values.reshape(shape).unwrap()
    }

    fn norm(tensor: &Tensor) -> f64 {
        let square = tensor.sqr().unwrap().sum_all().unwrap();
        square.to_scalar::<f64>().unwrap().sqrt()
    }

    /// Each form of an update with A and B.
    fn cases() -> Vec<(Form, Tensor, Tensor, usize)> {
        let experts = Form::Experts {
            count: 3,
            transposed: false,
        };
        vec![
            (Form::Linear, random(&[3, 7], 1), random(&[5, 3], 2), 1),
            // More rank than the layer can hold.
            (Form::Linear, random(&[9, 4], 1), random(&[5, 9], 2), 1),
            (
                Form::Conv { groups: 1 },
                random(&[2, 3, 3, 3], 3),
                random(&[4, 2, 1, 1], 4),
                1,
            ),
            (
                Form::Conv { groups: 2 },
                random(&[4, 3, 3], 3),
                random(&[6, 2, 1], 4),
                1,
            ),
            (experts, random(&[6, 5], 5), random(&[4, 6], 6), 3),
        ]
    }

    #[test]
    fn norms_and_differences_are_those_of_the_product() -> Result<()> {
        for (form, a, b, experts) in cases() {
            let formed = form.delta(&a, &b, -0.75)?;
            let product = Product::of(&a, &b, -0.75, experts)?;
            assert!((product.norm()? / norm(&formed) - 1.0).abs() < 1e-12);

            let (a2, b2) = ((&a * 0.5)?, (&b + 0.25)?);
            let other = Product::of(&a2, &b2, 2.0, experts)?;
            let difference = (&formed - form.delta(&a2, &b2, 2.0)?)?;
            let found = product.minus(&other).unwrap().norm()?;
            assert!((found / norm(&difference) - 1.0).abs() < 1e-12, "{form:?}");

            // The same update from other factors.
            let same = Product::of(&(&a * 4.0)?, &(&b * -0.25)?, 0.75, experts)?;
            assert!(product.minus(&same).unwrap().norm()? < 1e-14 * product.norm()?);
        }
        Ok(())
    }

    #[test]
    fn a_cut_keeps_the_first_singular_values() -> Result<()> {
        for (form, a, b, experts) in cases() {
            let product = Product::of(&a, &b, 1.5, experts)?;
            let full = product.cut(RankChoice::Rank(99), &a, &b)?;
            let error = (form.delta(&full.0, &full.1, 1.5)? - form.delta(&a, &b, 1.5)?)?;
            assert!(norm(&error) < 1e-12 * product.norm()?, "{form:?}");

            let (a1, b1) = product.cut(RankChoice::Rank(1), &a, &b)?;
            assert_eq!(a1.dim(0)?, product.blocks.len(), "{form:?}");
            let cut = Product::of(&a1, &b1, 1.5, experts)?;
            let lost = product.minus(&cut).unwrap().norm()?;
            let mut least = 0.0;
            for block in &product.blocks {
                least += energy(&decomposed(block)?.s[1..]);
            }
            assert!(
                (lost / (1.5 * least.sqrt()) - 1.0).abs() < 1e-12,
                "{form:?}"
            );
        }
        Ok(())
    }

    #[test]
    fn spectra_by_hand() -> Result<()> {
        let diagonal = Tensor::new(&[[3f64, 0.0, 0.0], [0.0, 4.0, 0.0]], &Device::Cpu)?;
        let product = Product::of(
            &diagonal,
            &Tensor::eye(2, DType::F64, &Device::Cpu)?,
            2.0,
            1,
        )?;
        let values = product.singular_values()?;
        assert!((values[0] - 8.0).abs() < 1e-12 && (values[1] - 6.0).abs() < 1e-12);
        let spectrum = Spectrum::of(&[8.0, 6.0]);
        assert_eq!((spectrum.norm, spectrum.largest), (10.0, 8.0));
        // The shares are 4/7 and 3/7.
        let entropy = -(4.0f64 / 7.0) * (4.0f64 / 7.0).ln() - (3.0 / 7.0) * (3.0f64 / 7.0).ln();
        assert!((spectrum.effective_rank - entropy.exp()).abs() < 1e-15);
        assert_eq!(spectrum.rank_99, 2);
        let even = Spectrum::of(&[2.0; 4]);
        assert!((even.effective_rank - 4.0).abs() < 1e-14);
        let none = Spectrum::of(&[0.0, 0.0]);
        assert_eq!(
            (none.norm, none.effective_rank, none.rank_99),
            (0.0, 0.0, 0)
        );
        let zero = Product::of(
            &diagonal.zeros_like()?,
            &Tensor::ones((5, 2), DType::F64, &Device::Cpu)?,
            1.0,
            1,
        )?;
        assert_eq!(zero.norm()?, 0.0);
        Ok(())
    }

    #[test]
    fn what_fits_not_is_an_error() -> Result<()> {
        let (a, b) = (random(&[3, 7], 1), random(&[5, 2], 2));
        let error = Product::of(&a, &b, 1.0, 1).err().unwrap().to_string();
        assert!(
            error.contains("A of shape [3, 7] and B of [5, 2]"),
            "{error}"
        );
        assert!(Product::of(&a, &(random(&[5, 3], 2) * f64::NAN)?, 1.0, 1).is_err());
        for choice in [
            RankChoice::Rank(0),
            RankChoice::Energy(0.0),
            RankChoice::Energy(1.5),
        ] {
            assert!(choice.check().is_err());
        }
        Ok(())
    }
}

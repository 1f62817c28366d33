//! The best matrices of low rank for a difference.

use crate::Result;
use crate::linalg::{self, Svd};
use crate::peft::RankChoice;
use crate::peft::product::halves;
use candle_core::{DType, Device, Tensor};
use faer::{Mat, MatRef};
use rand::Rng;

/// A matrix of a smaller side up to this is decomposed as a whole.
const SMALL: usize = 256;
/// How many more columns a random start has than values are asked for, and its steps.
const MORE: usize = 8;
const STEPS: usize = 4;
/// How many rows of the product are formed at a time.
const ROWS: usize = 256;

/// B (rows, r) and A (r, columns), as they were rounded to their dtype.
pub(super) struct LowRank {
    pub b: Tensor,
    pub a: Tensor,
    /// The squares of the norms of what is lost, and of the matrix.
    pub lost: f64,
    pub energy: f64,
}

impl LowRank {
    /// Of a matrix; a large one by a random start, whose error the result tells.
    pub fn of(
        matrix: MatRef<'_, f64>,
        choice: RankChoice,
        dtype: DType,
        rng: &mut impl Rng,
    ) -> Result<Self> {
        let energy = matrix.squared_norm_l2();
        let (svd, rank) = first_values(matrix, choice, energy, rng)?;
        let (u, v) = halves(&svd, rank);
        let b = linalg::tensor(u.as_ref(), dtype, &Device::Cpu)?;
        let a = linalg::tensor(v.transpose(), dtype, &Device::Cpu)?;
        let (left, right) = (linalg::matrix(&b)?, linalg::matrix(&a)?);
        Ok(Self {
            lost: lost(matrix, &left, &right),
            b,
            a,
            energy,
        })
    }
}

/// The first singular values, and how many of these the choice wants.
fn first_values(
    matrix: MatRef<'_, f64>,
    choice: RankChoice,
    energy: f64,
    rng: &mut impl Rng,
) -> Result<(Svd, usize)> {
    let side = matrix.nrows().min(matrix.ncols());
    let mut tried = match choice {
        RankChoice::Rank(rank) => rank.saturating_add(MORE),
        RankChoice::Energy(_) => 32,
    };
    // A random start costs several products: near the whole, the whole is cheaper.
    while side > SMALL && tried < side / 4 {
        let svd = linalg::svd_low_rank(matrix, tried, STEPS, rng)?;
        // The last values of a random start are less exact.
        let found = choice.within(&svd.s[..tried - MORE], energy);
        if let Some(rank) = found {
            return Ok((svd, rank.max(1)));
        }
        tried *= 2;
    }
    let svd = linalg::svd(matrix)?;
    let rank = choice.of(&svd.s);
    Ok((svd, rank))
}

/// ‖matrix − left·right‖², some rows at a time.
fn lost(matrix: MatRef<'_, f64>, left: &Mat<f64>, right: &Mat<f64>) -> f64 {
    let starts = (0..matrix.nrows()).step_by(ROWS);
    let energies = starts.map(|from| {
        let count = ROWS.min(matrix.nrows() - from);
        let rest = matrix.subrows(from, count) - left.subrows(from, count) * right;
        rest.squared_norm_l2()
    });
    energies.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init;

    /// A matrix with the singular values 2⁻¹, 2⁻², ..
    fn falling(rows: usize, cols: usize) -> Mat<f64> {
        let mut rng = init::rng(Some(3), "");
        let basis =
            |n, rng: &mut _| linalg::qr(linalg::random(n, 12, rng).as_ref()).map(|(q, _)| q);
        let (u, v) = (
            basis(rows, &mut rng).unwrap(),
            basis(cols, &mut rng).unwrap(),
        );
        Mat::from_fn(rows, 12, |row, col| {
            u[(row, col)] * 0.5f64.powi(col as i32 + 1)
        }) * v.transpose()
    }

    #[test]
    fn both_ways_find_the_best() -> Result<()> {
        for shape in [(40, 30), (300, 400)] {
            let matrix = falling(shape.0, shape.1);
            let mut rng = init::rng(Some(0), "");
            let found = LowRank::of(matrix.as_ref(), RankChoice::Rank(3), DType::F64, &mut rng)?;
            assert_eq!(found.a.dims(), [3, shape.1]);
            let all: f64 = (1..=12).map(|i| 0.25f64.powi(i)).sum();
            let rest: f64 = (4..=12).map(|i| 0.25f64.powi(i)).sum();
            assert!((found.energy / all - 1.0).abs() < 1e-12);
            assert!(
                (found.lost / rest - 1.0).abs() < 1e-6,
                "{shape:?} {} {rest}",
                found.lost
            );
            // 1 − 4⁻ᵏ of the energy is in the first k.
            let found = LowRank::of(
                matrix.as_ref(),
                RankChoice::Energy(0.99),
                DType::F64,
                &mut rng,
            )?;
            assert_eq!(found.a.dims(), [4, shape.1]);
        }
        Ok(())
    }

    #[test]
    fn what_is_rounded_away_counts_as_lost() -> Result<()> {
        let matrix = falling(20, 20);
        let mut rng = init::rng(Some(0), "");
        let found = LowRank::of(matrix.as_ref(), RankChoice::Rank(20), DType::BF16, &mut rng)?;
        let error = (found.lost / found.energy).sqrt();
        assert!(error > 1e-4 && error < 1e-2, "{error}");
        Ok(())
    }
}

//! Decompositions of matrices. They compute in f64 whatever the tensors' dtype, so that results are
//! rounded once.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};
use rand::{Rng, RngExt};

/// A value of N(0, 1), by Box and Muller.
pub(crate) fn gaussian(rng: &mut impl Rng) -> f64 {
    // 1 − u is never 0.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// A thin singular value decomposition U·diag(S)·Vᵀ, the largest values first.
pub(crate) struct Svd {
    /// (m, k)
    pub(crate) u: Mat<f64>,
    /// k values, none negative.
    pub(crate) s: Vec<f64>,
    /// (n, k)
    pub(crate) v: Mat<f64>,
}

/// A matrix with a tensor's values.
///
/// # Errors
/// If the tensor does not have two dimensions, has no elements, or holds a value that is not
/// finite.
pub(crate) fn matrix(tensor: &Tensor) -> Result<Mat<f64>> {
    let (rows, cols) = tensor.dims2()?;
    from_values(&values(tensor)?, rows, cols)
}

/// A matrix of values in row-major order.
///
/// # Errors
/// If there are no values, their number is not rows · cols, or a value is not finite.
pub(crate) fn from_values(values: &[f64], rows: usize, cols: usize) -> Result<Mat<f64>> {
    if values.is_empty() || values.len() != rows * cols {
        let message = format!("{} values for a matrix ({rows}, {cols})", values.len());
        return Err(Error::layer("", message));
    }
    let wrong = values.iter().filter(|value| !value.is_finite()).count();
    if wrong > 0 {
        let message = format!("{wrong} of the ({rows}, {cols}) values are not finite");
        return Err(Error::layer("", message));
    }
    Ok(Mat::from_fn(rows, cols, |row, col| {
        values[row * cols + col]
    }))
}

/// A tensor's values in row-major order.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// A matrix's values in row-major order.
pub(crate) fn to_values(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let rows = 0..matrix.nrows();
    rows.flat_map(|row| (0..matrix.ncols()).map(move |col| matrix[(row, col)]))
        .collect()
}

/// A tensor with a matrix's values, in this dtype.
pub(crate) fn tensor(matrix: MatRef<'_, f64>, dtype: DType, device: &Device) -> Result<Tensor> {
    let tensor = Tensor::from_vec(to_values(matrix), matrix.shape(), &Device::Cpu)?;
    Ok(tensor.to_dtype(dtype)?.to_device(device)?)
}

/// A matrix with values of N(0, 1).
pub(crate) fn random(rows: usize, cols: usize, rng: &mut impl Rng) -> Mat<f64> {
    Mat::from_fn(rows, cols, |_, _| gaussian(rng))
}

/// The thin singular value decomposition, with k = min(m, n).
///
/// # Errors
/// If the decomposition does not converge.
pub(crate) fn svd(matrix: MatRef<'_, f64>) -> Result<Svd> {
    let svd = matrix.thin_svd().ok();
    let svd = svd.map(|svd| Svd {
        u: svd.U().to_owned(),
        s: svd.S().column_vector().iter().copied().collect(),
        v: svd.V().to_owned(),
    });
    // Values near the end of the range can overflow on the way.
    let finite = |svd: &Svd| svd.u.is_all_finite() && svd.v.is_all_finite();
    svd.filter(|svd| finite(svd) && svd.s.iter().all(|s| s.is_finite()))
        .ok_or_else(|| not_found("singular value", matrix))
}

/// The decomposition of left·right, a product of (m, r) and (r, n), which is not formed: that of the
/// small matrix between the bases of both. k is the least of m, n and r.
///
/// # Errors
/// If a decomposition does not converge.
pub(crate) fn svd_of_product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Result<Svd> {
    let (of_left, small_left) = qr(left)?;
    let (of_right, small_right) = qr(right.transpose())?;
    let Svd { u, s, v } = svd((small_left * small_right.transpose()).as_ref())?;
    Ok(Svd {
        u: of_left * u,
        s,
        v: of_right * v,
    })
}

/// The first k singular values and vectors, approximately: this many steps of subspace iteration
/// from a random start (<https://arxiv.org/abs/0909.4061>, algorithms 4.4 and 5.1), as PyTorch's
/// `svd_lowrank`. The result is exact where k is at least min(m, n).
///
/// # Errors
/// If a decomposition does not converge.
pub(crate) fn svd_low_rank(
    matrix: MatRef<'_, f64>,
    k: usize,
    steps: usize,
    rng: &mut impl Rng,
) -> Result<Svd> {
    if k >= matrix.nrows().min(matrix.ncols()) {
        return svd(matrix);
    }
    if matrix.nrows() < matrix.ncols() {
        let Svd { u, s, v } = svd_low_rank(matrix.transpose(), k, steps, rng)?;
        return Ok(Svd { u: v, s, v: u });
    }
    // Without a new basis after each product, every column would turn to the largest singular
    // vector.
    let basis = |matrix: Mat<f64>| matrix.qr().compute_thin_Q();
    let mut q = basis(matrix * random(matrix.ncols(), k, rng));
    for _ in 0..steps {
        q = basis(matrix.transpose() * &q);
        q = basis(matrix * &q);
    }
    if !q.is_all_finite() {
        return Err(not_found("singular value", matrix));
    }
    let Svd { u, s, v } = svd((q.transpose() * matrix).as_ref())?;
    Ok(Svd { u: q * u, s, v })
}

/// The thin QR decomposition: Q (m, k) with orthonormal columns and R (k, n), k = min(m, n).
///
/// # Errors
/// If values overflow.
pub(crate) fn qr(matrix: MatRef<'_, f64>) -> Result<(Mat<f64>, Mat<f64>)> {
    let qr = matrix.qr();
    let (q, r) = (qr.compute_thin_Q(), qr.thin_R().to_owned());
    match q.is_all_finite() && r.is_all_finite() {
        true => Ok((q, r)),
        false => Err(not_found("QR", matrix)),
    }
}

/// Solves matrix·X = right for X, with a symmetric positive definite matrix.
///
/// # Errors
/// If the matrix is not positive definite.
pub(crate) fn solve_symmetric(matrix: MatRef<'_, f64>, right: Mat<f64>) -> Result<Mat<f64>> {
    let solved = matrix.llt(Side::Lower).ok().map(|llt| llt.solve(right));
    solved
        .filter(Mat::is_all_finite)
        .ok_or_else(|| not_found("Cholesky", matrix))
}

fn not_found(what: &str, matrix: MatRef<'_, f64>) -> Error {
    let (rows, cols) = matrix.shape();
    let message = format!("no {what} decomposition of the ({rows}, {cols}) values was found");
    Error::layer("", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::ChaCha8Rng;

    const SHAPES: [(usize, usize); 6] = [(1, 1), (7, 1), (1, 5), (6, 6), (23, 9), (8, 31)];

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(7)
    }

    fn assert_near(what: &str, actual: &Mat<f64>, expected: &Mat<f64>) {
        assert_eq!(actual.shape(), expected.shape(), "{what}");
        let error = (actual - expected).norm_max();
        assert!(
            error < 1e-12 * expected.norm_max().max(1.0),
            "{what}: {error:e}"
        );
    }

    fn assert_orthonormal(what: &str, matrix: &Mat<f64>) {
        let k = matrix.ncols();
        assert_near(what, &(matrix.transpose() * matrix), &Mat::identity(k, k));
    }

    fn product(svd: &Svd) -> Mat<f64> {
        let us = Mat::from_fn(svd.u.nrows(), svd.s.len(), |i, j| svd.u[(i, j)] * svd.s[j]);
        us * svd.v.transpose()
    }

    #[test]
    fn singular_vectors_give_back_the_matrix() -> Result<()> {
        for (m, n) in SHAPES {
            let matrix = random(m, n, &mut rng());
            let svd = svd(matrix.as_ref())?;
            let what = format!("({m}, {n})");
            assert_eq!(svd.s.len(), m.min(n), "{what}");
            assert!(svd.s.is_sorted_by(|a, b| a >= b), "{what}: {:?}", svd.s);
            assert_near(&what, &product(&svd), &matrix);
            assert_orthonormal(&what, &svd.u);
            assert_orthonormal(&what, &svd.v);
        }
        Ok(())
    }

    #[test]
    fn the_random_decomposition_finds_a_matrix_of_low_rank_exactly() -> Result<()> {
        for (m, n) in [(30, 12), (12, 30)] {
            let low = random(m, 3, &mut rng()) * random(3, n, &mut rng());
            let svd = svd_low_rank(low.as_ref(), 4, 2, &mut rng())?;
            assert_eq!((svd.u.shape(), svd.v.shape()), ((m, 4), (n, 4)));
            assert_near("product", &product(&svd), &low);
        }
        Ok(())
    }

    #[test]
    fn the_random_decomposition_comes_near_with_more_steps() -> Result<()> {
        let matrix = random(60, 40, &mut rng());
        let exact = svd(matrix.as_ref())?;
        let error = |steps| -> Result<f64> {
            let near = svd_low_rank(matrix.as_ref(), 5, steps, &mut rng())?;
            assert_orthonormal("u", &near.u);
            Ok((near.s[0] - exact.s[0]).abs() / exact.s[0])
        };
        let errors = [error(0)?, error(2)?, error(16)?];
        assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
        assert!(errors[0] > 1e-3 && errors[2] < 1e-6, "{errors:?}");
        Ok(())
    }

    #[test]
    fn a_product_has_the_decomposition_of_its_values() -> Result<()> {
        for (m, r, n) in [(9, 2, 7), (9, 7, 7), (4, 9, 6), (1, 1, 5), (6, 5, 3)] {
            let (left, right) = (random(m, r, &mut rng()), random(r, n, &mut rng()));
            let (found, formed) = (
                svd_of_product(left.as_ref(), right.as_ref())?,
                &left * &right,
            );
            let whole = svd(formed.as_ref())?;
            let what = format!("({m}, {r}, {n})");
            assert_eq!(found.s.len(), m.min(n).min(r), "{what}");
            for (one, two) in found.s.iter().zip(&whole.s) {
                assert!(
                    (one - two).abs() < 1e-12 * whole.s[0],
                    "{what}: {one} {two}"
                );
            }
            assert_near(&what, &product(&found), &formed);
            assert_orthonormal(&what, &found.u);
            assert_orthonormal(&what, &found.v);
        }
        Ok(())
    }

    #[test]
    fn q_and_r_give_back_the_matrix() -> Result<()> {
        for (m, n) in SHAPES {
            let matrix = random(m, n, &mut rng());
            let (q, r) = qr(matrix.as_ref())?;
            assert_eq!((q.shape(), r.shape()), ((m, m.min(n)), (m.min(n), n)));
            assert_near("product", &(&q * &r), &matrix);
            assert_orthonormal("q", &q);
            for row in 0..r.nrows() {
                assert!((0..row).all(|col| r[(row, col)] == 0.0), "R is triangular");
            }
        }
        Ok(())
    }

    #[test]
    fn symmetric_equations_are_solved() -> Result<()> {
        let half = random(9, 5, &mut rng());
        let (matrix, right) = (half.transpose() * &half, random(5, 2, &mut rng()));
        let solution = solve_symmetric(matrix.as_ref(), right.clone())?;
        assert_near("product", &(&matrix * solution), &right);
        let singular = Mat::zeros(5, 5);
        assert!(solve_symmetric(singular.as_ref(), right).is_err());
        Ok(())
    }

    #[test]
    fn what_has_no_decomposition_is_an_error() -> Result<()> {
        for bad in [f32::NAN, f32::INFINITY] {
            let tensor = Tensor::new(&[[1f32, bad], [2.0, 3.0]], &Device::Cpu)?;
            let error = matrix(&tensor).unwrap_err().to_string();
            assert!(error.contains("1 of the (2, 2) values"), "{error}");
        }
        let empty = Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?;
        assert!(matrix(&empty).is_err());
        let huge = Mat::from_fn(3, 3, |i, j| f64::MAX / (1 + i * j) as f64);
        assert!(svd(huge.as_ref()).is_err() || product(&svd(huge.as_ref())?).is_all_finite());
        assert_eq!(svd(Mat::zeros(3, 2).as_ref())?.s, [0.0, 0.0]);
        Ok(())
    }

    #[test]
    fn tensors_come_and_go_unchanged() -> Result<()> {
        let device = Device::Cpu;
        let original = Tensor::arange(0f32, 6.0, &device)?.reshape((3, 2))?.t()?;
        let matrix = matrix(&original)?;
        assert_eq!((matrix.shape(), matrix[(1, 2)]), ((2, 3), 5.0));
        let back = tensor(matrix.as_ref(), DType::F32, &device)?;
        assert_eq!(back.to_vec2::<f32>()?, original.to_vec2::<f32>()?);
        Ok(())
    }
}

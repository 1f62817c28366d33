//! Inverses of the small matrices that precondition gradients.

use crate::Result;
use candle_core::{DType, Device, Tensor};

/// The pseudo-inverses of G + `damping`·1, as `torch.linalg.pinv` computes them in the dtype of G.
/// G is (n, k, k), symmetric matrices without negative eigenvalues. Eigenvalues below k times the
/// dtype's precision times the largest count as 0.
pub(super) fn damped(grams: &Tensor, damping: f64) -> Result<Tensor> {
    let (n, k, _) = grams.dims3()?;
    let precision = match grams.dtype() {
        DType::F64 => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    };
    let host = grams.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let mut values: Vec<f64> = host.flatten_all()?.to_vec1()?;
    for matrix in values.chunks_exact_mut((k * k).max(1)) {
        (0..k).for_each(|i| matrix[i * (k + 1)] += damping);
        let trace: f64 = (0..k).map(|i| matrix[i * (k + 1)]).sum();
        let cutoff = k as f64 * precision;
        // Each eigenvalue lies between the damping and the trace. If none can count as 0, the
        // inverse is the pseudo-inverse, and Cholesky finds it faster.
        if damping <= cutoff * trace || cholesky(matrix, k).is_none() {
            pseudo(matrix, k, cutoff);
        }
    }
    let inverse = Tensor::from_vec(values, (n, k, k), &Device::Cpu)?;
    Ok(inverse.to_dtype(grams.dtype())?.to_device(grams.device())?)
}

/// Inverts a positive definite matrix in place. Any other matrix stays as it was: `None`.
fn cholesky(matrix: &mut [f64], k: usize) -> Option<()> {
    // M = L·Lᵀ
    let mut l = vec![0.0; k * k];
    for i in 0..k {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|p| l[i * k + p] * l[j * k + p]).sum();
            let rest = matrix[i * k + j] - dot;
            l[i * k + j] = if i != j {
                rest / l[j * (k + 1)]
            } else if rest > 0.0 {
                rest.sqrt()
            } else {
                return None;
            };
        }
    }
    // L⁻¹, row by row
    let mut inverse = vec![0.0; k * k];
    for i in 0..k {
        let pivot = l[i * (k + 1)];
        for j in 0..i {
            let dot: f64 = (j..i).map(|p| l[i * k + p] * inverse[p * k + j]).sum();
            inverse[i * k + j] = -dot / pivot;
        }
        inverse[i * (k + 1)] = 1.0 / pivot;
    }
    // M⁻¹ = L⁻ᵀ·L⁻¹
    for i in 0..k {
        for j in 0..=i {
            let dot = (i..k).map(|p| inverse[p * k + i] * inverse[p * k + j]);
            let dot: f64 = dot.sum();
            (matrix[i * k + j], matrix[j * k + i]) = (dot, dot);
        }
    }
    Some(())
}

/// Replaces a symmetric matrix by its pseudo-inverse; eigenvalues up to the largest times `cutoff`
/// count as 0.
fn pseudo(matrix: &mut [f64], k: usize, cutoff: f64) {
    let vectors = eigen(matrix, k);
    let values: Vec<f64> = (0..k).map(|i| matrix[i * (k + 1)]).collect();
    let largest = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let inverse = |v: f64| {
        if v.abs() > largest * cutoff {
            1.0 / v
        } else {
            0.0
        }
    };
    for i in 0..k {
        for j in 0..k {
            let row = |p: usize| vectors[i * k + p] * vectors[j * k + p] * inverse(values[p]);
            matrix[i * k + j] = (0..k).map(row).sum();
        }
    }
}

/// Jacobi's method: makes the symmetric matrix diagonal in place and returns its eigenvectors, as
/// columns.
fn eigen(matrix: &mut [f64], k: usize) -> Vec<f64> {
    let mut vectors = vec![0.0; k * k];
    (0..k).for_each(|i| vectors[i * (k + 1)] = 1.0);
    let norm: f64 = matrix.iter().map(|v| v * v).sum();
    // The method converges quadratically, in 6 to 10 sweeps.
    for _ in 0..50 {
        let off = |(i, v): (usize, &f64)| if i / k == i % k { 0.0 } else { v * v };
        let off: f64 = matrix.iter().enumerate().map(off).sum();
        if off <= norm * f64::EPSILON * f64::EPSILON {
            break;
        }
        for p in 0..k {
            for q in p + 1..k {
                rotate(matrix, &mut vectors, k, p, q);
            }
        }
    }
    vectors
}

/// One rotation, after which the entry (p, q) is 0.
fn rotate(matrix: &mut [f64], vectors: &mut [f64], k: usize, p: usize, q: usize) {
    let entry = matrix[p * k + q];
    if entry == 0.0 {
        return;
    }
    let theta = (matrix[q * (k + 1)] - matrix[p * (k + 1)]) / (2.0 * entry);
    let tan = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let cos = 1.0 / tan.hypot(1.0);
    let sin = tan * cos;
    let turn = |values: &mut [f64], a: usize, b: usize| {
        let (x, y) = (values[a], values[b]);
        values[a] = cos * x - sin * y;
        values[b] = sin * x + cos * y;
    };
    for i in 0..k {
        turn(matrix, i * k + p, i * k + q);
        turn(vectors, i * k + p, i * k + q);
    }
    for i in 0..k {
        turn(matrix, p * k + i, q * k + i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A·Aᵀ for A of shape (k, rank), of values without a pattern.
    fn gram(k: usize, rank: usize) -> Tensor {
        let value =
            |i: usize| (((i + 1) * (i + 1)) as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0;
        let a = Tensor::from_vec(
            (0..k * rank).map(value).collect(),
            (1, k, rank),
            &Device::Cpu,
        );
        let a = a.unwrap();
        a.matmul(&a.t().unwrap()).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap();
        difference.to_scalar().unwrap()
    }

    #[test]
    fn both_ways_invert() {
        for k in [1, 2, 5, 16] {
            let gram = gram(k, k + 3);
            let matrix: Vec<f64> = gram.flatten_all().unwrap().to_vec1().unwrap();
            let unit = Tensor::eye(k, DType::F64, &Device::Cpu).unwrap();
            let unit = unit.unsqueeze(0).unwrap();
            let (mut first, mut second) = (matrix.clone(), matrix);
            cholesky(&mut first, k).unwrap();
            pseudo(&mut second, k, 1e-15);
            for inverse in [first, second] {
                let inverse = Tensor::from_vec(inverse, (1, k, k), &Device::Cpu).unwrap();
                let product = gram.matmul(&inverse).unwrap();
                assert!(difference(&product, &unit) < 1e-10, "{k}");
            }
        }
    }

    #[test]
    fn a_singular_matrix_has_its_pseudo_inverse() {
        // The four conditions of Moore and Penrose; the last two are symmetry.
        let gram = gram(6, 3);
        let inverse = damped(&gram, 0.0).unwrap();
        let (gi, ig) = (
            gram.matmul(&inverse).unwrap(),
            inverse.matmul(&gram).unwrap(),
        );
        assert!(difference(&gi.matmul(&gram).unwrap(), &gram) < 1e-12);
        assert!(difference(&ig.matmul(&inverse).unwrap(), &inverse) < 1e-10);
        assert!(difference(&gi, &gi.t().unwrap()) < 1e-12);
        assert!(difference(&ig, &ig.t().unwrap()) < 1e-12);
        let mut matrix: Vec<f64> = gram.flatten_all().unwrap().to_vec1().unwrap();
        matrix[0] = -1.0;
        assert!(cholesky(&mut matrix, 6).is_none());
    }

    #[test]
    fn damping_is_added_and_precision_decides_what_is_zero() {
        let zero = Tensor::zeros((2, 3, 3), DType::F64, &Device::Cpu).unwrap();
        let unit = Tensor::eye(3, DType::F64, &Device::Cpu).unwrap();
        let expected = (unit * 4.0).unwrap().broadcast_as((2, 3, 3)).unwrap();
        assert!(difference(&damped(&zero, 0.25).unwrap(), &expected) < 1e-15);

        // Eigenvalues 1 and 0, damped by 1e-8: above the precision of f64, below that of f32.
        let matrix = Tensor::new(&[[[1f64, 0.0], [0.0, 0.0]]], &Device::Cpu).unwrap();
        let values = |m: &Tensor| {
            let m = damped(m, 1e-8).unwrap().to_dtype(DType::F64).unwrap();
            m.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        assert!((values(&matrix)[3] - 1e8).abs() < 1e-4);
        assert_eq!(values(&matrix.to_dtype(DType::F32).unwrap())[3], 0.0);
    }
}

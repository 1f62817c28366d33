//! What an adapter adds to a weight, as functions of plain tensors.
//!
//! A is (r, in) and B is (out, r) unless it says otherwise; s is the scaling.

use candle_core::{D, Result, Tensor, bail};

/// s·B·A, (out, in).
pub(crate) fn linear_delta(a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
    b.contiguous()?.matmul(&a.contiguous()?)? * scaling
}

/// s·(B·A)ᵀ, (in, out): of a weight that is stored transposed, and of an embedding, where `in` is
/// the number of rows.
pub(crate) fn transposed_delta(a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
    let (a, b) = (a.t()?.contiguous()?, b.t()?.contiguous()?);
    a.matmul(&b)? * scaling
}

/// Of a convolution without groups: A (r, in, k..), B (out, r, 1..), the result (out, in, k..).
pub(crate) fn conv_delta(a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
    let mut shape = a.dims().to_vec();
    shape[0] = b.dim(0)?;
    let delta = linear_delta(&a.flatten_from(1)?, &b.flatten_from(1)?, scaling)?;
    delta.reshape(shape)
}

/// Of one of `experts` weights in one tensor: A (experts·r, in), B (out, r·experts). Expert e has
/// the rows e·r.. of A, but each `experts`-th column of B from e on. The result is (out, in), or
/// (in, out) where it is stored transposed.
pub(crate) fn expert_delta(
    a: &Tensor,
    b: &Tensor,
    (expert, experts): (usize, usize),
    scaling: f64,
    transposed: bool,
) -> Result<Tensor> {
    let rank = a.dim(0)? / experts;
    let a = a.narrow(0, expert * rank, rank)?;
    let b = b.reshape((b.dim(0)?, rank, experts))?;
    let b = b.narrow(2, expert, 1)?.squeeze(2)?;
    if transposed {
        transposed_delta(&a, &b, scaling)
    } else {
        linear_delta(&a, &b, scaling)
    }
}

/// m / ‖V‖ · V, the weight of DoRA: V is the weight with its update, m has one value for each index
/// of dimension `axis`, and the norm is over all other dimensions.
pub(crate) fn dora(v: &Tensor, magnitude: &Tensor, axis: usize) -> Result<Tensor> {
    let v2 = v.transpose(0, axis)?.flatten_from(1)?;
    let norm = v2.sqr()?.sum(D::Minus1)?.sqrt()?;
    let mut shape = vec![1; v.rank()];
    shape[axis] = v.dim(axis)?;
    v.broadcast_mul(&(magnitude.flatten_all()? / norm)?.reshape(shape)?)
}

/// The matrix with these rows in place of its own; `indices` are of distinct rows.
pub(crate) fn replace_rows(weight: &Tensor, indices: &[u32], rows: &Tensor) -> Result<Tensor> {
    let count = weight.dim(0)?;
    let mut order: Vec<u32> = (0..count as u32).collect();
    for (place, &row) in indices.iter().enumerate() {
        match order.get_mut(row as usize) {
            Some(order) => *order = (count + place) as u32,
            None => bail!("there is no row {row} of {count} to be replaced"),
        }
    }
    let order = Tensor::new(order, weight.device())?;
    Tensor::cat(&[weight, rows], 0)?.index_select(&order, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn arange(shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f64> = (0..count)
            .map(|i| ((i * 7 + 3) % 11) as f64 - 5.0)
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.dims(), b.dims());
        let diff = (a - b).unwrap().abs().unwrap().max_all().unwrap();
        diff.to_scalar().unwrap()
    }

    /// Expert by expert, with the strides written out.
    #[test]
    fn experts_have_rows_of_a_and_strided_columns_of_b() {
        let (experts, rank, input, out) = (3, 2, 4, 5);
        let (a, b) = (
            arange(&[experts * rank, input]),
            arange(&[out, rank * experts]),
        );
        let (av, bv) = (a.to_vec2::<f64>().unwrap(), b.to_vec2::<f64>().unwrap());
        for e in 0..experts {
            let delta = expert_delta(&a, &b, (e, experts), 0.5, false).unwrap();
            let dv = delta.to_vec2::<f64>().unwrap();
            for (o, row) in dv.iter().enumerate() {
                for (i, value) in row.iter().enumerate() {
                    let terms = (0..rank).map(|j| bv[o][j * experts + e] * av[e * rank + j][i]);
                    assert_eq!(*value, 0.5 * terms.sum::<f64>());
                }
            }
            let transposed = expert_delta(&a, &b, (e, experts), 0.5, true).unwrap();
            assert_eq!(difference(&transposed.t().unwrap(), &delta), 0.0);
        }
    }

    #[test]
    fn a_transposed_delta_is_the_transposed_of_the_delta() {
        let (a, b) = (arange(&[2, 4]), arange(&[3, 2]));
        let delta = linear_delta(&a, &b, 0.25).unwrap();
        let transposed = transposed_delta(&a, &b, 0.25).unwrap();
        assert_eq!(difference(&transposed.t().unwrap(), &delta), 0.0);
        let (a, b) = (a.reshape((2, 2, 2)).unwrap(), b.reshape((3, 2, 1)).unwrap());
        let conv = conv_delta(&a, &b, 0.25).unwrap();
        assert_eq!(difference(&conv.reshape((3, 4)).unwrap(), &delta), 0.0);
    }

    /// Whatever the weight, the norms of the result are the magnitudes.
    #[test]
    fn dora_sets_the_norms() {
        for axis in 0..3 {
            let v = arange(&[3, 4, 2]);
            let n = v.dim(axis).unwrap();
            let m = (Tensor::arange(0., n as f64, &Device::Cpu).unwrap() + 1.0).unwrap();
            let w = dora(&v, &m, axis).unwrap();
            let norms = w.transpose(0, axis).unwrap().flatten_from(1).unwrap();
            let norms = norms.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
            assert!(difference(&norms, &m) < 1e-12);
        }
    }

    #[test]
    fn rows_are_replaced_exactly() {
        let weight = arange(&[4, 2]);
        let rows = (Tensor::ones((2, 2), DType::F64, &Device::Cpu).unwrap() * 0.1).unwrap();
        let new = replace_rows(&weight, &[3, 1], &rows).unwrap();
        let (new, old) = (
            new.to_vec2::<f64>().unwrap(),
            weight.to_vec2::<f64>().unwrap(),
        );
        assert_eq!(
            new,
            [old[0].clone(), vec![0.1; 2], old[2].clone(), vec![0.1; 2]]
        );
    }
}

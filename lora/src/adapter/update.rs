//! Every formula of a low-rank update: the shapes of A and B, and what B·A adds to a weight.
//!
//! The same functions serve a layer in memory, where candle records the graph, and a checkpoint on
//! disk.

use candle_core::{Result, Shape, Tensor, bail};

/// How a layer's weight is stored. This decides the shapes of A and B and the form of B·A.
///
/// As in PEFT, A always maps from the inputs and B to the outputs, whichever way the weight is
/// stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// A matrix (out, in): A is (r, in) and B (out, r).
    Linear,
    /// A matrix (in, out), or an embedding's table (rows, dim): A is (r, in) and B (out, r).
    Transposed,
    /// A convolution's (out, in / groups, k..): A is (r, in, k..) and B (out, r / groups, 1..).
    Conv {
        /// The groups of the layer.
        groups: usize,
    },
    /// The weights of all experts in one tensor, (experts, out, in), or (experts, in, out) if
    /// `transposed`: A is (experts · r, in) and B (out, r · experts). Expert e has r rows of A,
    /// from row e·r on, but every `count`-th column of B, from column e on.
    Experts {
        /// The number of experts.
        count: usize,
        /// Whether the tensor is stored as (experts, in, out).
        transposed: bool,
    },
}

impl Form {
    /// The shapes of A and B for a weight of this shape.
    pub(crate) fn shapes(self, weight: &[usize], rank: usize) -> (Shape, Shape) {
        match self {
            Self::Linear => ((rank, weight[1]).into(), (weight[0], rank).into()),
            Self::Transposed => ((rank, weight[0]).into(), (weight[1], rank).into()),
            Self::Conv { groups } => {
                let (mut a, mut b) = (weight.to_vec(), vec![1; weight.len()]);
                (b[0], b[1]) = (weight[0], rank / groups);
                (a[0], a[1]) = (rank, weight[1] * groups);
                (a.into(), b.into())
            }
            Self::Experts { count, transposed } => {
                let rows = count.saturating_mul(rank);
                let (input, out) = match transposed {
                    true => (weight[1], weight[2]),
                    false => (weight[2], weight[1]),
                };
                ((rows, input).into(), (out, rows).into())
            }
        }
    }

    /// The largest rank that B·A can have for a weight of this shape: the weight's smaller side. A
    /// higher rank makes the adapter larger, but lets it express nothing more.
    pub(crate) fn largest_rank(self, weight: &[usize]) -> usize {
        match self {
            Self::Linear | Self::Transposed => weight[0].min(weight[1]),
            Self::Conv { groups } => {
                let inputs: usize = weight[1..].iter().product();
                weight[0].min(inputs * groups)
            }
            Self::Experts { .. } => weight[1].min(weight[2]),
        }
    }

    /// B·A in the shape of the merged weight. This is the shape of the layer's weight, except for a
    /// convolution with groups, see [`widened`](Self::widened).
    pub(crate) fn product(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear => b.contiguous()?.matmul(&a.contiguous()?),
            Self::Transposed => {
                let (a, b) = (a.t()?.contiguous()?, b.t()?.contiguous()?);
                a.matmul(&b)
            }
            Self::Conv { groups } => {
                let (out, rank) = (b.dim(0)?, b.dim(1)?);
                let mut shape = a.dims().to_vec();
                shape[0] = out;
                let a = a.reshape((groups, rank, ()))?.contiguous()?;
                let b = b.reshape((groups, out / groups, rank))?.contiguous()?;
                b.matmul(&a)?.reshape(shape)
            }
            Self::Experts { count, transposed } => {
                let a = a.reshape((count, (), a.dim(1)?))?;
                let b = b.reshape((b.dim(0)?, (), count))?;
                let product = b.permute((2, 0, 1))?.contiguous()?.matmul(&a)?;
                match transposed {
                    true => product.t()?.contiguous(),
                    false => Ok(product),
                }
            }
        }
    }

    /// s·B·A, in the shape of [`product`](Self::product).
    pub(crate) fn delta(self, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
        self.product(a, b)? * scaling
    }

    /// The dimension of the weight that counts the outputs.
    pub(crate) fn output_dim(self) -> usize {
        match self {
            Self::Linear | Self::Conv { .. } => 0,
            Self::Transposed => 1,
            Self::Experts { transposed, .. } => 1 + usize::from(transposed),
        }
    }

    /// The number of weights in the tensor. Each of them has its own A and B.
    pub(crate) fn experts(self) -> usize {
        match self {
            Self::Experts { count, .. } => count,
            _ => 1,
        }
    }

    /// Turns a transposed weight (in, out) into a matrix (out, in), or such a matrix back. Any
    /// other tensor stays as it is.
    pub(crate) fn to_matrix(self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            Self::Transposed => tensor.t(),
            _ => Ok(tensor.clone()),
        }
    }

    /// A weight in the shape of the merged weight. The update of a convolution with groups lets
    /// every output see all channels. So the weight is widened to all channels, with zeros for the
    /// channels of other groups.
    pub(crate) fn widened(self, weight: &Tensor) -> Result<Tensor> {
        let groups = match self {
            Self::Conv { groups } if groups > 1 => groups,
            _ => return Ok(weight.clone()),
        };
        let channels = weight.dim(1)?;
        let rows = weight.chunk(groups, 0)?;
        let rows = rows.iter().enumerate().map(|(group, row)| {
            let (left, right) = (group * channels, (groups - 1 - group) * channels);
            row.pad_with_zeros(1, left, right)
        });
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    }
}

/// A and B of one expert, (r, in) and (out, r).
pub(crate) fn of_expert(
    a: &Tensor,
    b: &Tensor,
    expert: usize,
    count: usize,
) -> Result<(Tensor, Tensor)> {
    let rank = a.dim(0)? / count;
    let a = a.narrow(0, expert * rank, rank)?;
    let b = b.reshape((b.dim(0)?, rank, count))?;
    Ok((a, b.narrow(2, expert, 1)?.squeeze(2)?))
}

/// The matrix with these rows in place of its own rows. `indices` names each row at most once.
pub(crate) fn replace_rows(weight: &Tensor, indices: &[u32], rows: &Tensor) -> Result<Tensor> {
    let count = weight.dim(0)?;
    // Rows are selected, not added to: a sum with a difference would be rounded.
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
        let (count, rank, input, out) = (3, 2, 4, 5);
        let (a, b) = (arange(&[count * rank, input]), arange(&[out, rank * count]));
        let (av, bv) = (a.to_vec2::<f64>().unwrap(), b.to_vec2::<f64>().unwrap());
        let form = |transposed| Form::Experts { count, transposed };
        let all = form(false).delta(&a, &b, 0.5).unwrap();
        let turned = form(true).delta(&a, &b, 0.5).unwrap();
        for e in 0..count {
            let (a, b) = of_expert(&a, &b, e, count).unwrap();
            let delta = Form::Linear.delta(&a, &b, 0.5).unwrap();
            let dv = delta.to_vec2::<f64>().unwrap();
            for (o, row) in dv.iter().enumerate() {
                for (i, value) in row.iter().enumerate() {
                    let terms = (0..rank).map(|j| bv[o][j * count + e] * av[e * rank + j][i]);
                    assert_eq!(*value, 0.5 * terms.sum::<f64>());
                }
            }
            assert_eq!(difference(&all.get(e).unwrap(), &delta), 0.0);
            let turned = turned.get(e).unwrap().t().unwrap();
            assert_eq!(difference(&turned, &delta), 0.0);
        }
    }

    #[test]
    fn a_transposed_delta_is_the_transposed_of_the_delta() {
        let (a, b) = (arange(&[2, 4]), arange(&[3, 2]));
        let delta = Form::Linear.delta(&a, &b, 0.25).unwrap();
        let transposed = Form::Transposed.delta(&a, &b, 0.25).unwrap();
        assert_eq!(difference(&transposed.t().unwrap(), &delta), 0.0);
        let (a, b) = (a.reshape((2, 2, 2)).unwrap(), b.reshape((3, 2, 1)).unwrap());
        let conv = Form::Conv { groups: 1 }.delta(&a, &b, 0.25).unwrap();
        assert_eq!(difference(&conv.reshape((3, 4)).unwrap(), &delta), 0.0);
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

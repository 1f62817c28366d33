//! Whether two tensors hold the same values, also where one was rounded to another float type.

use crate::Result;
use candle_core::{DType, Tensor};

/// How many values are compared at a time, which bounds the memory that it takes.
const PIECE: usize = 1 << 22;

/// True if both have the same shape, and the same values but for rounding: the narrower of the two
/// float types decides. F16 and BF16 are both narrower in a way, so that two roundings of one value
/// count as the same.
pub(super) fn same_values(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dims() != b.dims() {
        return Ok(false);
    }
    let (a, b) = (a.flatten_all()?, b.flatten_all()?);
    for start in (0..a.elem_count()).step_by(PIECE) {
        let length = PIECE.min(a.elem_count() - start);
        let (a, b) = (a.narrow(0, start, length)?, b.narrow(0, start, length)?);
        let agree = agree(&a, &b)?;
        if agree.min(0)?.to_scalar::<u8>()? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn agree(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    let width = |tensor: &Tensor| tensor.dtype().size_in_bytes();
    match (a.dtype(), b.dtype()) {
        (one, other) if one == other => a.eq(b),
        (DType::F16, DType::BF16) => agree_halves(a, b),
        (DType::BF16, DType::F16) => agree_halves(b, a),
        _ if width(a) > width(b) => rounded(a, b.dtype())?.eq(b),
        _ => rounded(b, a.dtype())?.eq(a),
    }
}

/// The values in a narrower type. F64 is rounded to F32 first, as PyTorch does.
fn rounded(tensor: &Tensor, dtype: DType) -> candle_core::Result<Tensor> {
    match (tensor.dtype(), dtype) {
        (DType::F64, DType::F16 | DType::BF16) => tensor.to_dtype(DType::F32)?.to_dtype(dtype),
        _ => tensor.to_dtype(dtype),
    }
}

/// Where some value rounds to both.
fn agree_halves(half: &Tensor, brain: &Tensor) -> candle_core::Result<Tensor> {
    let wide = half.to_dtype(DType::F32)?;
    // Half of the distance to the next F16, which is at least half of the smallest one.
    let least = (wide.zeros_like()? + 2f64.powi(-25))?;
    let radius = (wide.abs()? * 2f64.powi(-11))?.maximum(&least)?;
    let rounded = |bound: Tensor| bound.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    let (low, high) = (rounded((&wide - &radius)?)?, rounded((&wide + &radius)?)?);
    let brain = brain.to_dtype(DType::F32)?;
    brain.ge(&low)? * brain.le(&high)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const TYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

    #[test]
    fn roundings_of_one_value_are_the_same() {
        // Values that F32 holds, as those of a checkpoint are.
        let values = Tensor::randn(0f32, 1., (40, 50), &Device::Cpu).unwrap();
        let small = (&values * 1e-7).unwrap();
        for values in [values, small] {
            for a in TYPES {
                for b in TYPES {
                    let [a, b] = [a, b].map(|dtype| values.to_dtype(dtype).unwrap());
                    assert!(
                        same_values(&a, &b).unwrap(),
                        "{:?} {:?}",
                        a.dtype(),
                        b.dtype()
                    );
                    // The same after one more rounding.
                    let again = rounded(&a, b.dtype()).unwrap();
                    assert!(same_values(&again, &a).unwrap());
                }
            }
        }
    }

    #[test]
    fn other_values_are_not() {
        let values = Tensor::new(&[1.0f64, -0.3], &Device::Cpu).unwrap();
        let others = Tensor::new(&[1.0f64, -0.304], &Device::Cpu).unwrap();
        for a in TYPES {
            for b in TYPES {
                let (a, b) = (values.to_dtype(a).unwrap(), others.to_dtype(b).unwrap());
                assert!(!same_values(&a, &b).unwrap());
            }
        }
        let nan = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap();
        assert!(!same_values(&nan, &nan).unwrap());
        assert!(!same_values(&nan, &Tensor::new(&[[1f32]], &Device::Cpu).unwrap()).unwrap());
        let none = Tensor::zeros((0, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(same_values(&none, &none).unwrap());
    }
}

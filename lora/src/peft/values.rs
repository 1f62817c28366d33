//! What the values of a tensor are like, a piece at a time.

use crate::Result;
use candle_core::{DType, Tensor};

/// How many values are widened at a time.
const PIECE: usize = 1 << 20;

/// The values of a tensor, or how those of two differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Values {
    /// How many are NaN or infinite; these count nowhere else.
    pub wrong: usize,
    /// The sum of the squares.
    pub energy: f64,
    /// The largest of all, without its sign.
    pub largest: f64,
}

impl Values {
    pub fn norm(&self) -> f64 {
        self.energy.sqrt()
    }

    fn add(&mut self, value: f64) {
        if !value.is_finite() {
            self.wrong += 1;
            return;
        }
        self.energy += value * value;
        self.largest = self.largest.max(value.abs());
    }

    /// Of a tensor of numbers.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let mut values = Self::default();
        for piece in pieces(tensor)? {
            piece?.into_iter().for_each(|value| values.add(value));
        }
        Ok(values)
    }

    /// Of the difference between two tensors of one shape. Where both hold the same value that is no
    /// number, or the same infinity, there is none.
    pub fn of_difference(one: &Tensor, two: &Tensor) -> Result<Self> {
        let mut values = Self::default();
        for (one, two) in pieces(one)?.zip(pieces(two)?) {
            for (one, two) in one?.into_iter().zip(two?) {
                let same = one == two || (one.is_nan() && two.is_nan());
                values.add(if same { 0.0 } else { one - two });
            }
        }
        Ok(values)
    }
}

fn pieces(tensor: &Tensor) -> Result<impl Iterator<Item = Result<Vec<f64>>>> {
    let flat = tensor.flatten_all()?;
    let count = flat.elem_count();
    let starts = (0..count).step_by(PIECE);
    Ok(starts.map(move |from| {
        let piece = flat.narrow(0, from, PIECE.min(count - from))?;
        Ok(piece.to_dtype(DType::F64)?.to_vec1()?)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn values_by_hand() -> Result<()> {
        let tensor = Tensor::new(&[[3f32, f32::NAN], [f32::INFINITY, -4.0]], &Device::Cpu)?;
        let values = Values::of(&tensor)?;
        assert_eq!((values.wrong, values.norm(), values.largest), (2, 5.0, 4.0));
        assert_eq!(Values::of_difference(&tensor, &tensor)?, Values::default());
        let other = Tensor::new(&[[3f32, 1.0], [1.0, -3.5]], &Device::Cpu)?;
        let difference = Values::of_difference(&tensor, &other)?;
        assert_eq!((difference.wrong, difference.largest), (2, 0.5));
        let long = Tensor::ones(PIECE + 5, DType::F16, &Device::Cpu)?;
        assert_eq!(Values::of(&long)?.energy, (PIECE + 5) as f64);
        Ok(())
    }
}

//! The table of positions, for images of another size than the table's.

use candle_core::{Result, Tensor};

/// The rows of a table (side², width) for patches of (height, width) along the sides: interpolated
/// by cubic polynomials, as transformers does.
pub(super) fn interpolated(
    table: &Tensor,
    side: usize,
    (height, width): (usize, usize),
) -> Result<Tensor> {
    let (_, channels) = table.dims2()?;
    let weights = |count: usize| -> Result<Tensor> {
        let weights = cubic(side, count);
        let weights = Tensor::from_vec(weights, (count, side), table.device())?;
        weights.to_dtype(table.dtype())
    };
    // Rows first, then columns.
    let rows = weights(height)?.matmul(&table.reshape((side, side * channels))?)?;
    let rows = rows.reshape((height, side, channels))?.transpose(0, 1)?;
    let rows = rows.contiguous()?.reshape((side, height * channels))?;
    let both = weights(width)?.matmul(&rows)?;
    let both = both.reshape((width, height, channels))?.transpose(0, 1)?;
    both.contiguous()?.reshape((height * width, channels))
}

/// The share of each of `from` values in each of `to`, row by row: PyTorch's bicubic interpolation
/// with unaligned corners.
fn cubic(from: usize, to: usize) -> Vec<f64> {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let mut weights = vec![0.0; from * to];
    let scale = from as f64 / to as f64;
    for (row, weights) in weights.chunks_mut(from).enumerate() {
        let place = scale * (row as f64 + 0.5) - 0.5;
        let t = place - place.floor();
        let shares = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        for (offset, share) in shares.into_iter().enumerate() {
            let index = place.floor() as isize + offset as isize - 1;
            weights[index.clamp(0, from as isize - 1) as usize] += share;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_one_and_keep_what_fits() {
        for (from, to) in [(1, 3), (4, 4), (5, 8), (8, 3)] {
            let weights = cubic(from, to);
            for row in weights.chunks(from) {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
            if from == to {
                let unit = |index: usize| f64::from(u8::from(index % from == index / from));
                let same = |(index, &w): (usize, &f64)| (w - unit(index)).abs() < 1e-12;
                assert!(weights.iter().enumerate().all(same));
            }
        }
    }
}

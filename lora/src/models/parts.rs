//! What the models of transformers are made of, with the initial values of transformers.

use crate::ops::Attention;
use candle_core::{Device, Result, Tensor};
use candle_nn::{Init, LayerNorm, Linear, VarBuilder, init};

/// transformers draws weights from N(0, 0.02²), as timm does.
pub(super) const WEIGHT: Init = Init::Randn {
    mean: 0.0,
    stdev: 0.02,
};

pub(super) fn linear(inputs: usize, outputs: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    let weight = vb.get_with_hints((outputs, inputs), "weight", WEIGHT)?;
    let bias = bias.then(|| vb.get_with_hints(outputs, "bias", init::ZERO));
    Ok(Linear::new(weight, bias.transpose()?))
}

pub(super) fn layer_norm(width: usize, bias: bool, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    let weight = vb.get_with_hints(width, "weight", init::ONE)?;
    Ok(match bias {
        true => LayerNorm::new(weight, vb.get_with_hints(width, "bias", init::ZERO)?, eps),
        false => LayerNorm::new_no_bias(weight, eps),
    })
}

/// From (batch, time, heads * dim) to (batch, heads, time, dim), a view.
pub(super) fn heads(xs: &Tensor, count: usize) -> Result<Tensor> {
    let (batch, time, width) = xs.dims3()?;
    xs.reshape((batch, time, count, width / count))?
        .transpose(1, 2)
}

/// The attention of (batch, heads, time, dim), as (batch, time, heads * dim).
pub(super) fn attend(attention: &Attention, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
    let ys = attention.forward(q, k, v)?;
    ys.transpose(1, 2)?.flatten_from(2)
}

/// The numbers for [`Attention::sequences`] by which tokens see tokens and no padding, (batch, time).
/// `None` if padding stands between the tokens of a row.
pub(super) fn runs(rows: &[Vec<bool>]) -> Result<Option<Tensor>> {
    let time = rows.first().map_or(0, Vec::len);
    let mut numbers = Vec::with_capacity(rows.len() * time);
    for row in rows {
        let runs = row.chunk_by(|a, b| a == b);
        if runs.clone().filter(|run| run[0]).count() > 1 {
            return Ok(None);
        }
        let number = |(number, run): (u32, &[bool])| vec![number; run.len()];
        numbers.extend((0..).zip(runs).flat_map(number));
    }
    Tensor::from_vec(numbers, (rows.len(), time), &Device::Cpu).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_on_both_sides_makes_three_runs() -> Result<()> {
        let rows = |rows: [[u8; 5]; 2]| rows.map(|row| row.map(|token| token == 1).to_vec());
        let numbers = runs(&rows([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))?;
        let numbers = numbers
            .map(|numbers| numbers.to_vec2::<u32>())
            .transpose()?;
        assert_eq!(numbers, Some(vec![vec![0, 1, 1, 2, 2], vec![0; 5]]));
        assert!(runs(&rows([[1, 0, 1, 1, 1], [1; 5]]))?.is_none());
        Ok(())
    }
}

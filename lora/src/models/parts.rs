//! What the models of transformers are made of, with the initial values of transformers.

use crate::ops::Attention;
use candle_core::{Result, Tensor};
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

//! What the models of transformers are made of, with the initial values of transformers.

use candle_core::Result;
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

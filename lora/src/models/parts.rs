//! What the models of transformers are made of, with the initial values of transformers.

use candle_core::Result;
use candle_nn::{Init, Linear, VarBuilder, init};

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

//! The prior of Würstchen: a block of 8 channels, a latent of 2 channels, 3 by 3, three tokens. The model
//! divides by the distance of its outputs from 1: of many outputs, one would be so close that it were the loss.
use crate::prelude::*;
use zoo_wuerstchen::models::wuerstchen::prior::WPrior;

type Model = WPrior;

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(WPrior::new(2, 8, 6, 4, 1, 2, false, vb)?)
}

run!(|model| {
    let latent = Tensor::arange(0f32, 18., &Device::Cpu)?
        .sin()?
        .reshape((1, 2, 3, 3))?;
    let text = Tensor::arange(0f32, 18., &Device::Cpu)?
        .cos()?
        .reshape((1, 3, 6))?;
    let ratio = Tensor::new(&[0.3f32], &Device::Cpu)?;
    mean_square(&model.forward(&latent, &ratio, &text)?)
}, unreached: ["*.depthwise"]);

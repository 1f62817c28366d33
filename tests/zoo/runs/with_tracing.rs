//! The wrappers that other models hold: one of each, width 8, two images of 4 by 4 and two tokens.
use crate::prelude::*;
use zoo_with_tracing::models::with_tracing::{
    Conv2d, Embedding, LayerNorm, Linear, RmsNorm, conv2d, layer_norm, linear,
};

type Model = (Embedding, Conv2d, LayerNorm, Linear, RmsNorm);

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok((
        Embedding::new(6, 8, vb.pp("embedding"))?,
        conv2d(3, 8, 2, Default::default(), vb.pp("conv"))?,
        layer_norm(8, 1e-5, vb.pp("layer_norm"))?,
        linear(8, 8, vb.pp("linear"))?,
        RmsNorm::new(8, 1e-5, vb.pp("rms_norm"))?,
    ))
}

run!(|model| {
    let ids = Tensor::new(&[1u32, 4], &Device::Cpu)?;
    let images = Tensor::arange(0f32, 96., &Device::Cpu)?
        .sin()?
        .reshape((2, 3, 4, 4))?;
    let seen = model.1.forward(&images)?.flatten_from(2)?.mean(2)?;
    let xs = model.2.forward(&(seen + model.0.forward(&ids)?)?)?;
    let xs = (&xs + model.3.forward(&xs)?)?;
    mean_square(&model.4.forward(&xs)?)
});

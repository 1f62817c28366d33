//! BEiT: a layer of width 8. Images are of 384 by 384 and classes 1000, always.
use crate::prelude::*;
use zoo_beit::models::beit::BeitVisionTransformer;

type Model = BeitVisionTransformer;

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(BeitVisionTransformer::new(vb, 1, 8, 2)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 442368., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 384, 384))?;
    mean_square(&model.forward(&image)?)
});

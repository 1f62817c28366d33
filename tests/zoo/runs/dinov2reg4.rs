//! DINOv2 with registers: a layer of width 8. Images are of 518 by 518 and classes 7806, always.
use crate::prelude::*;
use zoo_dinov2reg4::models::dinov2reg4::DinoVisionTransformer;

type Model = DinoVisionTransformer;

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(DinoVisionTransformer::new(vb, 1, 8, 2)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 804972., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 518, 518))?;
    mean_square(&model.forward(&image)?)
});

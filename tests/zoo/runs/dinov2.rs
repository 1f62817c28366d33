//! DINOv2: two layers of width 16. Images are of 518 by 518 and 1000 classes, always: a smaller
//! image has its positions interpolated.
use crate::prelude::*;
use zoo_dinov2::models::dinov2::DinoVisionTransformer;

type Model = DinoVisionTransformer;

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(DinoVisionTransformer::new(vb, 2, 16, 2)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 2352., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 28, 28))?;
    mean_square(&model.forward(&image)?)
});

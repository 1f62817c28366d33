//! EVA-02: a layer of width 64. Images are of 448 by 448, classes 1000 and heads 64 wide, always.
use crate::prelude::*;
use zoo_eva2::models::eva2::EVA2VisionTransformer;

type Model = EVA2VisionTransformer;

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(EVA2VisionTransformer::new(vb, 1, 64, 1)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 602112., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 448, 448))?;
    mean_square(&model.forward(&image)?)
});

//! The core of Stable Diffusion 3: two blocks of width 16, four patches, three tokens. `MMDiT`
//! around it makes its time embedding in `F16`, so it cannot run in `F32`.
use crate::prelude::*;
use zoo_mmdit::models::mmdit::model::MMDiTCore;

type Model = MMDiTCore;

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(MMDiTCore::new(2, 16, 2, 2, 3, false, vb)?)
}

run!(|model| {
    let text = Tensor::arange(0f32, 48., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 16))?;
    let image = Tensor::arange(0f32, 64., &Device::Cpu)?
        .cos()?
        .reshape((1, 4, 16))?;
    let time = Tensor::arange(0f32, 16., &Device::Cpu)?
        .sin()?
        .reshape((1, 16))?;
    mean_square(&model.forward(&text, &image, &time, None)?)
});

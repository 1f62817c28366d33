//! EfficientNet: the first two stages of B0, an image of 16 by 16, three classes.
use crate::prelude::*;
use zoo_efficientnet::models::efficientnet::{EfficientNet, MBConvConfig};

type Model = EfficientNet;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let mut stages = MBConvConfig::b0();
    stages.truncate(2);
    Ok(EfficientNet::new(vb, stages, 3)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 768., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 16, 16))?;
    mean_square(&model.forward(&image)?)
}, unreached: ["features.1.0.block.0.0", "features.2.*.block.1.0"]);

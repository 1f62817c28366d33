//! Depth Anything 2: a DINOv2 of four layers of width 8 and a head of 4 to 8 channels. The size
//! of DINOv2's images, 518 by 518, and of its classifier are fixed; nothing uses the latter here.
//! The outputs, which are cut off at 0, are above.
use crate::prelude::*;
use std::sync::Arc;
use zoo_depth_anything_v2::models::{
    depth_anything_v2::{DepthAnythingV2, DepthAnythingV2Config},
    dinov2::DinoVisionTransformer,
};

type Model = DepthAnythingV2;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let vb = changed(vb, |name, tensor| {
        let is_last = name.ends_with("output_conv2.2.bias");
        is_last.then(|| tensor.abs()? + 1.)
    });
    let config = DepthAnythingV2Config::new([4; 4], 8, 8, false, false, vec![0, 1, 2, 3], 28, 2);
    let features = DinoVisionTransformer::new(vb.pp("pretrained"), 4, 8, 2)?;
    Ok(DepthAnythingV2::new(Arc::new(features), config, vb)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 2352., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 28, 28))?;
    mean_square(&model.forward(&image)?)
}, unreached: ["pretrained.head", "*.refinenet4.resConfUnit1.*"]);

//! The UNet of Stable Diffusion: one block with attention and one without, 64 channels each. Some
//! norms of candle have 32 groups, whatever the configuration says, and with groups of one
//! channel the embedding of the time would have no effect.
use crate::prelude::*;
use zoo_stable_diffusion::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};

type Model = UNet2DConditionModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let block = |out_channels, use_cross_attn| BlockConfig {
        out_channels,
        use_cross_attn,
        attention_head_dim: 2,
    };
    let config = UNet2DConditionModelConfig {
        blocks: vec![block(64, Some(1)), block(64, None)],
        layers_per_block: 1,
        cross_attention_dim: 12,
        ..Default::default()
    };
    Ok(UNet2DConditionModel::new(vb, 4, 4, false, config)?)
}

run!(|model| {
    let sample = Tensor::arange(0f32, 144., &Device::Cpu)?
        .sin()?
        .reshape((1, 4, 6, 6))?;
    let text = Tensor::arange(0f32, 36., &Device::Cpu)?
        .cos()?
        .reshape((1, 3, 12))?;
    mean_square(&model.forward(&sample, 17., &text)?)
});

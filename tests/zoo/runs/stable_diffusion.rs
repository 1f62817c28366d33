//! The UNet of Stable Diffusion: one block with attention and one without, 32 channels each, as candle
//! has 32 groups in some norms, whatever the configuration says.
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
        blocks: vec![block(32, Some(1)), block(32, None)],
        layers_per_block: 1,
            cross_attention_dim: 12,
        ..Default::default()
    };
    Ok(UNet2DConditionModel::new(vb, 4, 4, false, config)?)
}

run!(|model| {
    let sample = Tensor::arange(0f32, 144., &Device::Cpu)?.sin()?.reshape((1, 4, 6, 6))?;
    let text = Tensor::arange(0f32, 36., &Device::Cpu)?.cos()?.reshape((1, 3, 12))?;
    mean_square(&model.forward(&sample, 17., &text)?)
});

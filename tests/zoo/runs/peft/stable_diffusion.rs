//! The UNet of Stable Diffusion.
use crate::prelude::*;
use zoo_stable_diffusion::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};

type Model = UNet2DConditionModel;

/// The configuration of the fixture, whose fields have other names than candle's.
pub fn build(vb: VarBuilder, _: &str) -> Result<Model> {
    let block = |use_cross_attn| BlockConfig {
        out_channels: 32,
        use_cross_attn,
        attention_head_dim: 2,
    };
    let config = UNet2DConditionModelConfig {
        blocks: vec![block(Some(1)), block(None)],
        layers_per_block: 1,
        cross_attention_dim: 12,
        ..Default::default()
    };
    Ok(UNet2DConditionModel::new(vb, 4, 4, false, config)?)
}

peft!(|model, data| {
    let time = data["timestep"].to_vec1::<f32>()?[0];
    let (sample, text) = (&data["sample"], &data["encoder_hidden_states"]);
    Ok(model.forward(sample, f64::from(time), text)?)
});

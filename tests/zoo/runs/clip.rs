//! CLIP: a layer of width 16 for texts and images, two texts and two images.
use crate::prelude::*;
use zoo_clip::models::clip::{
    ClipConfig, ClipModel,
    text_model::{Activation, ClipTextConfig},
    vision_model::ClipVisionConfig,
};

type Model = ClipModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let text_config = ClipTextConfig {
        vocab_size: 12,
        embed_dim: 16,
        activation: Activation::QuickGelu,
        intermediate_size: 24,
        max_position_embeddings: 8,
        pad_with: None,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        projection_dim: 8,
    };
    let vision_config = ClipVisionConfig {
        embed_dim: 16,
        activation: Activation::QuickGelu,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        projection_dim: 8,
        num_channels: 3,
        image_size: 8,
        patch_size: 4,
    };
    let config = ClipConfig {
        text_config,
        vision_config,
        logit_scale_init_value: 1.,
        image_size: 8,
    };
    Ok(ClipModel::new(vb, &config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 11], [2, 4, 6, 11]], &Device::Cpu)?;
    let images = Tensor::arange(0f32, 384., &Device::Cpu)?
        .sin()?
        .reshape((2, 3, 8, 8))?;
    let (per_text, _) = model.forward(&images, &ids)?;
    mean_square(&per_text)
});

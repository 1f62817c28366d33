//! CLIP.
use crate::prelude::*;
use serde_json::Value;
use zoo_clip::models::clip::{
    ClipConfig, ClipModel,
    text_model::{Activation, ClipTextConfig},
    vision_model::ClipVisionConfig,
};

type Model = ClipModel;

pub fn build(vb: VarBuilder, config: &str) -> Result<Model> {
    let config: Value = serde_json::from_str(config)?;
    let (text, vision) = (&config["text_config"], &config["vision_config"]);
    let size = |config: &Value, name: &str| config[name].as_u64().unwrap_or(0) as usize;
    let text_config = ClipTextConfig {
        vocab_size: size(text, "vocab_size"),
        embed_dim: size(text, "hidden_size"),
        activation: Activation::QuickGelu,
        intermediate_size: size(text, "intermediate_size"),
        max_position_embeddings: size(text, "max_position_embeddings"),
        pad_with: None,
        num_hidden_layers: size(text, "num_hidden_layers"),
        num_attention_heads: size(text, "num_attention_heads"),
        projection_dim: size(text, "projection_dim"),
    };
    let vision_config = ClipVisionConfig {
        embed_dim: size(vision, "hidden_size"),
        activation: Activation::QuickGelu,
        intermediate_size: size(vision, "intermediate_size"),
        num_hidden_layers: size(vision, "num_hidden_layers"),
        num_attention_heads: size(vision, "num_attention_heads"),
        projection_dim: size(vision, "projection_dim"),
        num_channels: size(vision, "num_channels"),
        image_size: size(vision, "image_size"),
        patch_size: size(vision, "patch_size"),
    };
    let config = ClipConfig {
        text_config,
        image_size: vision_config.image_size,
        vision_config,
        logit_scale_init_value: 1.,
    };
    Ok(ClipModel::new(vb, &config)?)
}

peft!(|model, data| {
    let (per_text, _) = model.forward(&data["pixel_values"], &data["input_ids"])?;
    Ok(per_text)
});

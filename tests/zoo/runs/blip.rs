//! BLIP: a layer of width 16 for images and texts, one image and four tokens.
use crate::prelude::*;
use zoo_blip::models::blip::{BlipForConditionalGeneration, Config};

type Model = BlipForConditionalGeneration;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "text_config": {
                "vocab_size": 12, "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 24,
                "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "max_position_embeddings": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
                "is_decoder": true
            },
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "projection_dim": 16,
                "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
                "hidden_act": "gelu", "layer_norm_eps": 1e-5
            },
            "projection_dim": 16, "image_text_hidden_size": 16
        }"#,
    )?;
    Ok(BlipForConditionalGeneration::new(&config, vb)?)
}

run!(|model| {
    model.reset_kv_cache();
    let image = Tensor::arange(0f32, 192., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 8, 8))?;
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let seen = model.vision_model().forward(&image)?;
    mean_square(&model.text_decoder().forward(&ids, &seen)?)
});

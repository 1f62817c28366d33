//! Gemma 4: two layers of width 16 for texts, one for images; an image of four patches, which
//! candle always puts first, and three tokens. Its caches are those of Gemma 3.
use crate::prelude::*;
use zoo_gemma4::models::gemma4::{self, config::Gemma4Config};

type Model = gemma4::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Gemma4Config = serde_json::from_str(
        r#"{
            "text_config": {
                "head_dim": 8, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
                "num_hidden_layers": 2, "num_key_value_heads": 1, "vocab_size": 12,
                "sliding_window": 16, "max_position_embeddings": 16, "global_head_dim": 8,
                "layer_types": ["sliding_attention", "full_attention"]
            },
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "patch_size": 2,
                "position_embedding_size": 8, "pooling_kernel_size": 2
            },
            "image_token_id": 10, "audio_token_id": 11
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let image = Tensor::arange(0f32, 48., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 4, 4))?;
    let ids = Tensor::new(&[[10u32, 1, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward_multimodal(&ids, Some(&[image]), None, None, 0)?)
});

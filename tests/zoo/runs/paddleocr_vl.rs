//! PaddleOCR-VL: a layer of width 16 for images and texts, an image of 4 by 4 patches, six
//! tokens.
use crate::prelude::*;
use zoo_paddleocr_vl::models::paddleocr_vl::{Config, PaddleOCRVLModel};

type Model = PaddleOCRVLModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 8, "patch_size": 2
            },
            "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
            "head_dim": 8, "rope_theta": 10000.0, "image_token_id": 10, "video_token_id": 11,
            "rope_scaling": { "mrope_section": [2, 1, 1], "rope_type": "default" }
        }"#,
    )?;
    Ok(PaddleOCRVLModel::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let image = Tensor::arange(0f32, 192., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 8, 8))?;
    let grid = Tensor::new(&[[1u32, 4, 4]], &Device::Cpu)?;
    let ids = Tensor::new(&[[1u32, 10, 10, 10, 10, 3]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, Some(&image), Some(&grid), 0)?)
}, unreached: ["*.packing_position_embedding"]);

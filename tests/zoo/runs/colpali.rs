//! ColPali: a layer of width 16 for images and texts, one image and four tokens.
use crate::prelude::*;
use zoo_colpali::models::{colpali, paligemma::Config};

type Model = colpali::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 8, "patch_size": 4
            },
            "text_config": {
                "attention_bias": false, "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh",
                "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
                "num_hidden_layers": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "vocab_size": 12, "max_position_embeddings": 16
            },
            "projection_dim": 16
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 192., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 8, 8))?;
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward_images(&image, &ids)?)
}, unreached: ["model.language_model.lm_head"]);

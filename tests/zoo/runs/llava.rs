//! LLaVA: a layer of width 16 for images and texts, an image of four patches between two tokens,
//! without a cache.
use crate::prelude::*;
use zoo_llava::models::{
    clip::{text_model::Activation, vision_model::ClipVisionConfig},
    llama::Cache,
    llava::{LLaVA, config::LLaVAConfig},
};

type Model = LLaVA;

fn config() -> Result<LLaVAConfig> {
    Ok(serde_json::from_str(
        r#"{
            "architectures": [], "bos_token_id": 0, "eos_token_id": 1, "hidden_size": 16,
            "image_crop_resolution": 8, "image_grid_pinpoints": [], "image_split_resolution": 8,
            "intermediate_size": 24, "max_position_embeddings": 16, "mm_hidden_size": 16,
            "mm_projector_type": "mlp2x_gelu", "mm_use_im_start_end": false,
            "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
            "model_type": "llava", "num_attention_heads": 2, "num_hidden_layers": 1,
            "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "torch_dtype": "float32", "use_cache": false, "vocab_size": 12
        }"#,
    )?)
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    let vision = ClipVisionConfig {
        embed_dim: 16,
        activation: Activation::QuickGelu,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        projection_dim: 8,
        num_channels: 3,
        image_size: 8,
        patch_size: 4,
    };
    Ok(LLaVA::load(vb, &config()?, Some(vision))?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 192., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 8, 8))?;
    let ids = Tensor::new(&[[1i64, -200, 3]], &Device::Cpu)?;
    let xs = model.prepare_inputs_labels_for_multimodal(&ids, &[image], &[(8, 8)])?;
    let mut cache = Cache::new(
        false,
        DType::F32,
        &config()?.to_llama_config(),
        &Device::Cpu,
    )?;
    mean_square(&model.forward(&xs, 0, &mut cache)?)
});

//! Pixtral: a layer of width 16 for images and texts, an image of four patches.
use crate::prelude::*;
use zoo_pixtral::models::pixtral::llava::{self, Config};

type Model = llava::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "projector_hidden_act": "gelu", "image_token_index": 10, "image_seq_length": 4,
            "text_config": {
                "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
                "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"
            },
            "vision_config": {
                "hidden_size": 16, "num_channels": 3, "image_size": 8, "patch_size": 4,
                "rope_theta": 10000.0, "intermediate_size": 24, "num_hidden_layers": 1,
                "num_attention_heads": 2
            }
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let image = Tensor::arange(0f32, 192., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 8, 8))?;
    let seen = model.encode_image(&image)?;
    let logits = model.lm_forward_embeds(&seen)?;
    let next = Tensor::new(&[[3u32]], &Device::Cpu)?;
    let logits = (logits + model.lm_forward(&next)?)?;
    mean_square(&logits)
});

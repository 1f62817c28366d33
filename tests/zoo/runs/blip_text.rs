//! The text model of BLIP: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_blip_text::models::blip_text::{Config, TextLMHeadModel};

type Model = TextLMHeadModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "encoder_hidden_size": 12, "intermediate_size": 24,
            "projection_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "is_decoder": true
        }"#,
    )?;
    Ok(TextLMHeadModel::new(&config, vb)?)
}

run!(|model| {
    model.reset_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let seen = Tensor::arange(0f32, 36., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 12))?;
    mean_square(&model.forward(&ids, &seen)?)
});

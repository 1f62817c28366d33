//! ModernBERT with its head: two layers of width 16, one with a local window, four tokens.
use crate::prelude::*;
use zoo_modernbert::models::modernbert::{Config, ModernBertForMaskedLM};

type Model = ModernBertForMaskedLM;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 24, "max_position_embeddings": 16, "layer_norm_eps": 1e-5,
            "pad_token_id": 0, "global_attn_every_n_layers": 2, "global_rope_theta": 10000.0,
            "local_attention": 4, "local_rope_theta": 1000.0
        }"#,
    )?;
    Ok(ModernBertForMaskedLM::load(vb, &config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let mask = Tensor::ones((1, 4), DType::F32, &Device::Cpu)?;
    mean_square(&model.forward(&ids, &mask)?)
});

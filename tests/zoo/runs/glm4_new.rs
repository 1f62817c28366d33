//! GLM 4 of 2025: two layers of width 16, four tokens. Its cache is candle's `KvCache`, which
//! copies into a buffer without a gradient.
use crate::prelude::*;
use zoo_glm4_new::models::glm4_new::{Config, ModelForCausalLM};

type Model = ModelForCausalLM;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
            "head_dim": 8, "partial_rotary_factor": 0.5, "attention_bias": true,
            "tie_word_embeddings": false, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
            "hidden_act": "silu"
        }"#,
    )?;
    Ok(ModelForCausalLM::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0)?)
});

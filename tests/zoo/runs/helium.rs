//! Helium: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_helium::models::helium::{self, Config};

type Model = helium::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
            "attention_bias": false, "bos_token_id": 0, "eos_token_id": 1, "head_dim": 8,
            "hidden_act": "silu", "mlp_bias": false, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": false
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0)?)
});

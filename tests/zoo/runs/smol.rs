//! SmolLM 3: two layers of width 16, one without rotations, four tokens. Its cache is candle's
//! `KvCache`, which copies into a buffer without a gradient.
use crate::prelude::*;
use zoo_smol::models::smol::smollm3::{Config, ModelForCausalLM};

type Model = ModelForCausalLM;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
            "tie_word_embeddings": false, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "no_rope_layers": [1, 0]
        }"#,
    )?;
    Ok(ModelForCausalLM::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0)?)
});

//! Qwen 3: two layers of width 16, four tokens. Its cache is candle's `ConcatKvCache`, which
//! detaches, and on a CPU its attention is a kernel without a gradient.
use crate::prelude::*;
use zoo_qwen3::models::qwen3::{Config, ModelForCausalLM};

type Model = ModelForCausalLM;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
            "head_dim": 8, "attention_bias": false, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "hidden_act": "silu", "max_window_layers": 2, "tie_word_embeddings": false,
            "use_sliding_window": false
        }"#,
    )?;
    Ok(ModelForCausalLM::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0)?)
});

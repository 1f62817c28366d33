//! Gemma 3: two layers of width 16, one with a sliding window, four tokens. Its caches are
//! candle's `KvCache` and `RotatingKvCache`, which copy into a buffer without a gradient.
use crate::prelude::*;
use zoo_gemma3::models::gemma3::{self, Config};

type Model = gemma3::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
            "attention_bias": false, "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_local_base_freq": 1000.0,
            "query_pre_attn_scalar": 8, "sliding_window": 16, "sliding_window_pattern": 2
        }"#,
    )?;
    Ok(Model::new(false, &config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0)?)
});

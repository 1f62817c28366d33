//! DeepSeek 2: a dense layer and one with two experts, width 16, four tokens. Both experts take
//! each token, so that no choice among them changes.
use crate::prelude::*;
use zoo_deepseek2::models::deepseek2::{DeepSeekV2, DeepSeekV2Config};

type Model = DeepSeekV2;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: DeepSeekV2Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "n_shared_experts": 1,
            "n_routed_experts": 2, "routed_scaling_factor": 1.0, "topk_method": "greedy",
            "num_experts_per_tok": 2, "moe_layer_freq": 1, "first_k_dense_replace": 1,
            "norm_topk_prob": false, "scoring_func": "softmax", "hidden_act": "silu",
            "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
            "rope_theta": 10000.0, "attention_bias": false, "q_lora_rank": 6, "qk_rope_head_dim": 4,
            "kv_lora_rank": 6, "v_head_dim": 8, "qk_nope_head_dim": 4, "n_group": 1, "topk_group": 1
        }"#,
    )?;
    Ok(DeepSeekV2::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0)?)
});

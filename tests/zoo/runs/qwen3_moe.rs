//! Qwen 3 with experts: a dense layer and one with two experts, one a token, width 16, twelve
//! times two tokens, so that each expert has some. candle takes the weights of the routing out of
//! the graph; with one expert a token they are constant. Its cache and attention are those of
//! Qwen 3.
use crate::prelude::*;
use zoo_qwen3_moe::models::qwen3_moe::{Config, ModelForCausalLM};

type Model = ModelForCausalLM;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 24,
            "head_dim": 8, "attention_bias": false, "max_window_layers": 2,
            "tie_word_embeddings": false, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
            "use_sliding_window": false, "hidden_act": "silu", "decoder_sparse_step": 2,
            "moe_intermediate_size": 12, "num_experts_per_tok": 1, "num_experts": 2,
            "norm_topk_prob": true
        }"#,
    )?;
    Ok(ModelForCausalLM::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let ids = Tensor::arange(0u32, 24, &Device::Cpu)?.reshape((12, 2))?;
    mean_square(&model.forward(&ids, 0)?)
}, unreached: ["*.mlp.gate"]);

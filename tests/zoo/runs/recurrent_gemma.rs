//! RecurrentGemma: a recurrent layer and one with attention, width 16, four tokens. Its cache
//! cannot be cleared from outside, so each run has a copy.
use crate::prelude::*;
use zoo_recurrent_gemma::models::recurrent_gemma::{self, Config};

type Model = recurrent_gemma::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "num_hidden_layers": 2, "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "lru_width": 16,
            "attention_window_size": 8, "conv1d_width": 3, "logits_soft_cap": 30.0,
            "hidden_activation": "gelu_pytorch_tanh", "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "block_types": ["recurrent", "attention"],
            "attention_bias": false, "max_seq_len": 16
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.clone().forward(&ids, 0)?)
}, unreached: ["*.conv_1d"]);

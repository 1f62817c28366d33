//! T5: two layers of width 16 in encoder and decoder, a gated feed-forward part, without a cache.
use crate::prelude::*;
use zoo_t5::models::t5::{Config, T5ForConditionalGeneration};

type Model = T5ForConditionalGeneration;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
            "relative_attention_num_buckets": 32, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6,
            "initializer_factor": 1.0, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
            "is_encoder_decoder": true, "use_cache": false, "pad_token_id": 0, "eos_token_id": 1
        }"#,
    )?;
    Ok(T5ForConditionalGeneration::load(vb, &config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let started = Tensor::new(&[[0u32, 4, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, &started)?)
}, unreached: ["shared.inner"]);

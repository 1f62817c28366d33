//! Llama: two layers of width 16, four tokens, without a cache.
use crate::prelude::*;
use zoo_llama::models::llama::{Cache, Config, Llama};

type Model = Llama;

fn config() -> Config {
    Config {
        hidden_size: 16,
        intermediate_size: 24,
        vocab_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        use_flash_attn: false,
        rms_norm_eps: 1e-5,
        rope_theta: 10000.,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: 16,
        tie_word_embeddings: false,
    }
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(Llama::load(vb, &config())?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let mut cache = Cache::new(false, DType::F32, &config(), &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0, &mut cache)?)
});

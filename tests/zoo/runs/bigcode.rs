//! StarCoder (GPTBigCode): two layers of width 16, four tokens, without a cache.
use crate::prelude::*;
use zoo_bigcode::models::bigcode::{Config, GPTBigCode};

type Model = GPTBigCode;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config = Config {
        vocab_size: 12,
        max_position_embeddings: 8,
        num_hidden_layers: 2,
        hidden_size: 16,
        layer_norm_epsilon: 1e-5,
        n_inner: Some(24),
        num_attention_heads: 2,
        multi_query: true,
        use_cache: false,
    };
    Ok(GPTBigCode::load(vb, config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0)?)
});

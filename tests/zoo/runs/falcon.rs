//! Falcon: two layers of width 16, four tokens, without a cache.
use crate::prelude::*;
use zoo_falcon::models::falcon::{Config, Falcon};

type Model = Falcon;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config = Config {
        vocab_size: 12,
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        use_cache: false,
        ..Config::falcon7b()
    };
    Ok(Falcon::load(vb, config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids)?)
});

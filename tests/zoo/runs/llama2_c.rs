//! Llama 2 in C: two layers of width 16, four tokens, without a cache. The cache takes its
//! rotations from the checkpoint, or computes the same if the checkpoint has none.
use crate::prelude::*;
use std::collections::HashMap;
use zoo_llama2_c::models::llama2_c::{Cache, Config, Llama};

type Model = Llama;

fn config() -> Config {
    Config {
        dim: 16,
        hidden_dim: 24,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        vocab_size: 12,
        seq_len: 16,
        norm_eps: 1e-5,
    }
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(Llama::load(vb, config())?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let nothing = VarBuilder::from_tensors(HashMap::new(), DType::F32, &Device::Cpu);
    let mut cache = Cache::new(false, &config(), nothing)?;
    mean_square(&model.forward(&ids, 0, &mut cache)?)
});

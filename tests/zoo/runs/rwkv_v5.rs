//! RWKV 5: two layers of width 16, three tokens, one after the other.
use crate::prelude::*;
use zoo_rwkv_v5::models::rwkv_v5::{self, Config, State};

type Model = rwkv_v5::Model;

fn config() -> Config {
    Config {
        vocab_size: 12,
        hidden_size: 16,
        num_hidden_layers: 2,
        attention_hidden_size: 16,
        num_attention_heads: 8,
        head_size: 8,
        intermediate_size: Some(24),
        layer_norm_epsilon: 1e-5,
        rescale_every: 6,
    }
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(Model::new(&config(), vb)?)
}

run!(|model| {
    let mut state = State::new(1, &config(), &Device::Cpu)?;
    let mut logits = Vec::new();
    for id in [1u32, 5, 3] {
        let ids = Tensor::new(&[[id]], &Device::Cpu)?;
        logits.push(model.forward(&ids, &mut state)?);
    }
    mean_square(&Tensor::stack(&logits, 0)?)
});

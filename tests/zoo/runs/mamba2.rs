//! Mamba 2: two layers of width 16, five tokens in chunks of two, then one token more.
use crate::prelude::*;
use zoo_mamba2::models::mamba2::{self, Config, State};

type Model = mamba2::Model;

fn config() -> Config {
    Config {
        d_model: 16,
        n_layer: 2,
        vocab_size: 12,
        d_state: 4,
        expand: 2,
        headdim: 8,
        ngroups: 1,
        pad_vocab_size_multiple: 4,
    }
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(Model::new(&config(), vb)?)
}

run!(|model| {
    let mut state = State::new(1, &config(), DType::F32, &Device::Cpu)?;
    let ids = Tensor::new(&[[1u32, 5, 3, 2, 7]], &Device::Cpu)?;
    let first = model.forward_prefill(&ids, &mut state, 2)?;
    let next = Tensor::new(&[4u32], &Device::Cpu)?;
    let last = model.forward(&next, &mut state)?;
    mean_square(&Tensor::cat(&[first.squeeze(0)?, last], 0)?)
});

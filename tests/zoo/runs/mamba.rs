//! Mamba: two layers of width 16, three tokens, one after the other.
use crate::prelude::*;
use zoo_mamba::models::mamba::{self, Config, State};

type Model = mamba::Model;

fn config() -> Config {
    Config {
        d_model: 16,
        n_layer: 2,
        vocab_size: 12,
        pad_vocab_size_multiple: 4,
    }
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(Model::new(&config(), vb)?)
}

run!(|model| {
    let mut state = State::new(1, &config(), DType::F32, &Device::Cpu)?;
    let mut logits = Vec::new();
    for id in [1u32, 5, 3] {
        let ids = Tensor::new(&[id], &Device::Cpu)?;
        logits.push(model.forward(&ids, &mut state)?);
    }
    mean_square(&Tensor::stack(&logits, 0)?)
});

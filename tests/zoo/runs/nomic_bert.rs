//! Nomic BERT: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_nomic_bert::models::nomic_bert::{Config, NomicBertModel};

type Model = NomicBertModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config = Config {
        vocab_size: 12,
        n_embd: 16,
        n_head: 2,
        n_layer: 2,
        n_inner: 24,
        n_positions: 16,
        ..Default::default()
    };
    Ok(NomicBertModel::load(vb, &config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, None, None)?)
});

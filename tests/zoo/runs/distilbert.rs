//! DistilBERT with its head: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_distilbert::models::distilbert::{Config, DistilBertForMaskedLM};

type Model = DistilBertForMaskedLM;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
            "activation": "gelu", "max_position_embeddings": 8, "initializer_range": 0.02,
            "pad_token_id": 0
        }"#,
    )?;
    Ok(DistilBertForMaskedLM::load(vb, &config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let hidden = Tensor::zeros((1, 1, 1, 4), DType::U8, &Device::Cpu)?;
    mean_square(&model.forward(&ids, &hidden)?)
});

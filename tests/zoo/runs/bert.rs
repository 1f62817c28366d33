//! BERT: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_bert::models::bert::{BertModel, Config};

type Model = BertModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 24, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
            "max_position_embeddings": 8, "type_vocab_size": 2, "initializer_range": 0.02,
            "layer_norm_eps": 1e-12, "pad_token_id": 0
        }"#,
    )?;
    Ok(BertModel::load(vb, &config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let types = Tensor::new(&[[0u32, 0, 1, 1]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, &types, None)?)
});

//! JinaBERT: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_jina_bert::models::jina_bert::{BertModel, Config};

type Model = BertModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 24, "hidden_act": "gelu", "max_position_embeddings": 8,
            "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
            "pad_token_id": 0, "position_embedding_type": "alibi"
        }"#,
    )?;
    Ok(BertModel::new(vb, &config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids)?)
});

//! XLM-RoBERTa with a classifier: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_xlm_roberta::models::xlm_roberta::{Config, XLMRobertaForSequenceClassification};

type Model = XLMRobertaForSequenceClassification;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "hidden_size": 16, "layer_norm_eps": 1e-5, "attention_probs_dropout_prob": 0.1,
            "hidden_dropout_prob": 0.1, "num_attention_heads": 2, "position_embedding_type": "absolute",
            "intermediate_size": 24, "hidden_act": "gelu", "num_hidden_layers": 2, "vocab_size": 12,
            "max_position_embeddings": 8, "type_vocab_size": 1, "pad_token_id": 1
        }"#,
    )?;
    Ok(Model::new(3, &config, vb)?)
}

run!(|model| {
    let ids = Tensor::new(&[[2u32, 5, 3, 4]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, &ids.ones_like()?, &ids.zeros_like()?)?)
});

//! DeBERTa v2 with a classifier: two layers of width 16 with relative positions, four tokens.
use crate::prelude::*;
use std::collections::HashMap;
use zoo_debertav2::models::debertav2::{Config, DebertaV2SeqClassificationModel};

type Model = DebertaV2SeqClassificationModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 24, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 8, "type_vocab_size": 0,
            "initializer_range": 0.02, "layer_norm_eps": 1e-7, "relative_attention": true,
            "max_relative_positions": -1, "position_biased_input": false, "pos_att_type": "p2c|c2p",
            "position_buckets": 4, "norm_rel_ebd": "layer_norm", "pooler_dropout": 0.0,
            "pooler_hidden_act": "gelu", "pooler_hidden_size": 16
        }"#,
    )?;
    let labels: HashMap<u32, String> = (0..3).map(|label| (label, label.to_string())).collect();
    Ok(Model::load(vb, &config, Some(labels))?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids, None, None)?)
});

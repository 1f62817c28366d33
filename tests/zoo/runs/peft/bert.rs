//! BERT, as sentence-transformers publishes it.
use crate::prelude::*;
use zoo_bert::models::bert::BertModel;

type Model = BertModel;

pub fn build(vb: VarBuilder, config: &str) -> Result<Model> {
    Ok(BertModel::load(vb, &serde_json::from_str(config)?)?)
}

peft!(|model, data| {
    let mask = Some(&data["attention_mask"]);
    Ok(model.forward(&data["input_ids"], &data["token_type_ids"], mask)?)
});

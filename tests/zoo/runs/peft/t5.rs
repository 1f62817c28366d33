//! T5 1.1.
use crate::prelude::*;
use zoo_t5::models::t5::{Config, T5ForConditionalGeneration};

type Model = T5ForConditionalGeneration;

pub fn build(vb: VarBuilder, config: &str) -> Result<Model> {
    let mut config: Config = serde_json::from_str(config)?;
    config.use_cache = false;
    Ok(T5ForConditionalGeneration::load(vb, &config)?)
}

peft!(|model, data| {
    let (ids, started) = (&data["input_ids"], &data["decoder_input_ids"]);
    Ok(model.forward(ids, started)?)
});

//! Llama, without a cache.
use crate::prelude::*;
use zoo_llama::models::llama::{Cache, Config, Llama, LlamaConfig};

type Model = Llama;

fn config(text: &str) -> Result<Config> {
    Ok(serde_json::from_str::<LlamaConfig>(text)?.into_config(false))
}

pub fn build(vb: VarBuilder, text: &str) -> Result<Model> {
    Ok(Llama::load(vb, &config(text)?)?)
}

peft!(|model, data| {
    let config = config(include_str!("../../fixtures/llama/config.json"))?;
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu)?;
    Ok(model.forward(&data["input_ids"], 0, &mut cache)?)
});

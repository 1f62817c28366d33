//! ViT with three classes.
use crate::prelude::*;
use zoo_vit::models::vit;

type Model = vit::Model;

pub fn build(vb: VarBuilder, config: &str) -> Result<Model> {
    Ok(Model::new(&serde_json::from_str(config)?, 3, vb)?)
}

peft!(|model, data| { Ok(model.forward(&data["pixel_values"])?) });

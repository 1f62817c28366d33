//! Whisper.
use crate::prelude::*;
use zoo_whisper::models::whisper::model::Whisper;

type Model = Whisper;

pub fn build(vb: VarBuilder, config: &str) -> Result<Model> {
    Ok(Whisper::load(&vb, serde_json::from_str(config)?)?)
}

peft!(|model, data| {
    let audio = model.encoder.forward(&data["input_features"], true)?;
    let xs = model.decoder.forward(&data["decoder_input_ids"], &audio, true)?;
    Ok(model.decoder.final_linear(&xs)?)
});

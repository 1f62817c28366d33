//! Whisper: a layer of width 16 in encoder and decoder, six frames, three tokens.
use crate::prelude::*;
use zoo_whisper::models::whisper::{Config, model::Whisper};

type Model = Whisper;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "num_mel_bins": 4, "max_source_positions": 6, "d_model": 16, "encoder_attention_heads": 2,
            "encoder_layers": 1, "vocab_size": 12, "max_target_positions": 8,
            "decoder_attention_heads": 2, "decoder_layers": 1
        }"#,
    )?;
    Ok(Whisper::load(&vb, config)?)
}

run!(|model| {
    let mel = Tensor::arange(0f32, 48., &Device::Cpu)?
        .sin()?
        .reshape((1, 4, 12))?;
    let ids = Tensor::new(&[[1u32, 5, 3]], &Device::Cpu)?;
    let audio = model.encoder.forward(&mel, true)?;
    let xs = model.decoder.forward(&ids, &audio, true)?;
    mean_square(&model.decoder.final_linear(&xs)?)
});

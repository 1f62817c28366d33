//! SNAC: encoder, quantizer and decoder with 4 to 8 channels, without noise. No attention and no
//! convolutions by channel, which candle has not completed. `in_proj` of the quantizers makes
//! codes, which have no gradient.
use crate::prelude::*;
use zoo_snac::models::snac::{self, Config};

type Model = snac::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "sampling_rate": 24000, "encoder_dim": 4, "encoder_rates": [2], "decoder_dim": 8,
            "decoder_rates": [2], "attn_window_size": null, "codebook_size": 5, "codebook_dim": 3,
            "vq_strides": [2, 1], "noise": false, "depthwise": false
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    let audio = Tensor::arange(0f32, 16., &Device::Cpu)?
        .sin()?
        .reshape((1, 1, 16))?;
    let latent = model.encoder.forward(&audio)?;
    let coarse = Tensor::new(&[[1u32, 4]], &Device::Cpu)?;
    let fine = Tensor::new(&[[0u32, 3, 1, 2]], &Device::Cpu)?;
    let decoded = model.decode(&[&coarse, &fine])?;
    mean_square(&Tensor::cat(
        &[latent.flatten_all()?, decoded.flatten_all()?],
        0,
    )?)
}, unreached: ["quantizer.*.in_proj"]);

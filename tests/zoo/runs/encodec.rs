//! EnCodec: the encoder and the decoder with 4 filters; between them, codes have no gradient.
use crate::prelude::*;
use zoo_encodec::models::encodec::{Config, Decoder, Encoder};

type Model = (Encoder, Decoder);

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config = Config {
        hidden_size: 6,
        num_filters: 4,
        upsampling_ratios: vec![2],
        num_lstm_layers: 1,
        ..Default::default()
    };
    Ok((
        Encoder::new(&config, vb.pp("encoder"))?,
        Decoder::new(&config, vb.pp("decoder"))?,
    ))
}

run!(|model| {
    let audio = Tensor::arange(0f32, 8., &Device::Cpu)?
        .sin()?
        .reshape((1, 1, 8))?;
    let latent = Tensor::arange(0f32, 24., &Device::Cpu)?
        .cos()?
        .reshape((1, 6, 4))?;
    let encoded = model.0.forward(&audio)?.flatten_all()?;
    let decoded = model.1.forward(&latent)?.flatten_all()?;
    mean_square(&Tensor::cat(&[encoded, decoded], 0)?)
});

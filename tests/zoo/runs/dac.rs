//! DAC: encoder, quantizer and decoder with 4 to 8 channels. `Model::new` has fixed sizes, its
//! parts have not. No function uses the quantizers' `in_proj`.
use crate::prelude::*;
use zoo_dac::models::dac::{self, Decoder, Encoder, ResidualVectorQuantizer};

type Model = dac::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(Model {
        encoder: Encoder::new(4, &[2], 6, vb.pp("encoder"))?,
        quantizer: ResidualVectorQuantizer::new(6, 2, 5, 3, vb.pp("quantizer"))?,
        decoder: Decoder::new(6, 8, &[2], 1, vb.pp("decoder"))?,
    })
}

run!(|model| {
    let audio = Tensor::arange(0f32, 16., &Device::Cpu)?
        .sin()?
        .reshape((1, 1, 16))?;
    let latent = model.encoder.forward(&audio)?;
    let codes = Tensor::new(
        &[[[1u32, 4, 2, 0, 3, 1, 2], [0, 3, 1, 4, 2, 0, 1]]],
        &Device::Cpu,
    )?;
    let quantized = model.quantizer.from_codes(&codes)?;
    mean_square(
        &model
            .decoder
            .forward(&Tensor::cat(&[latent, quantized], 2)?)?,
    )
}, unreached: ["quantizer.*.in_proj"]);

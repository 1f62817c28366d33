//! Segment Anything: the image encoder of width 8, the prompt encoder and the mask decoder of
//! width 16. Around these, `Sam` has fixed sizes. On a CPU, candle adds relative positions
//! without a gradient. Its boxes fail, so nothing uses their two embeddings.
use crate::prelude::*;
use zoo_segment_anything::models::segment_anything::{
    image_encoder::ImageEncoderViT, mask_decoder::MaskDecoder, prompt_encoder::PromptEncoder,
};

type Model = (ImageEncoderViT, PromptEncoder, MaskDecoder);

pub fn build(vb: VarBuilder) -> Result<Model> {
    let image = vb.pp("image_encoder");
    let image = ImageEncoderViT::new(16, 4, 3, 8, 2, 2, 16, true, true, true, 2, &[1], image)?;
    let prompt = PromptEncoder::new(16, (4, 4), (16, 16), 16, vb.pp("prompt_encoder"))?;
    let mask = MaskDecoder::new(16, 3, 3, 12, vb.pp("mask_decoder"))?;
    Ok((image, prompt, mask))
}

run!(|model| {
    let image = Tensor::arange(0f32, 768., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 16, 16))?;
    let points = Tensor::new(&[[[3f32, 5.], [9., 2.]]], &Device::Cpu)?;
    let labels = Tensor::new(&[[1f32, 0.]], &Device::Cpu)?;
    let masks = Tensor::arange(0f32, 256., &Device::Cpu)?
        .cos()?
        .reshape((1, 1, 16, 16))?;
    let seen = model.0.forward(&image)?;
    let place = model.1.get_dense_pe()?;
    let (sparse, dense) = model
        .1
        .forward(Some((&points, &labels)), None, Some(&masks))?;
    let (masks, quality) = model.2.forward(&seen, &place, &sparse, &dense, true)?;
    let (sparse, dense) = model.1.forward(Some((&points, &labels)), None, None)?;
    let (mask, _) = model.2.forward(&seen, &place, &sparse, &dense, false)?;
    let outputs = [
        masks.flatten_all()?,
        quality.flatten_all()?,
        mask.flatten_all()?,
    ];
    mean_square(&Tensor::cat(&outputs, 0)?)
}, unreached: ["prompt_encoder.point_embeddings.2", "prompt_encoder.point_embeddings.3"]);

//! Flux: one block of two streams and one of a single stream, width 16, four patches, three
//! tokens.
use crate::prelude::*;
use zoo_flux::models::flux::{
    WithForward,
    model::{Config, Flux},
};

type Model = Flux;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config = Config {
        in_channels: 6,
        vec_in_dim: 5,
        context_in_dim: 7,
        hidden_size: 16,
        mlp_ratio: 2.,
        num_heads: 2,
        depth: 1,
        depth_single_blocks: 1,
        axes_dim: vec![4, 2, 2],
        theta: 10000,
        qkv_bias: true,
        guidance_embed: true,
    };
    Ok(Flux::new(&config, vb)?)
}

run!(|model| {
    let wave = |n: usize, width: usize| -> Result<Tensor> {
        let values = Tensor::arange(0f32, (n * width) as f32, &Device::Cpu)?;
        Ok(values.sin()?.reshape((1, n, width))?)
    };
    let place = [[[0f32, 0., 0.], [0., 0., 1.], [0., 1., 0.], [0., 1., 1.]]];
    let image_ids = Tensor::new(&place, &Device::Cpu)?;
    let text_ids = Tensor::zeros((1, 3, 3), DType::F32, &Device::Cpu)?;
    let time = Tensor::new(&[0.3f32], &Device::Cpu)?;
    let guidance = Tensor::new(&[0.7f32], &Device::Cpu)?;
    let pooled = wave(1, 5)?.squeeze(0)?;
    let (image, text) = (wave(4, 6)?, wave(3, 7)?);
    let image = model.forward(
        &image,
        &image_ids,
        &text,
        &text_ids,
        &time,
        &pooled,
        Some(&guidance),
    )?;
    mean_square(&image)
});

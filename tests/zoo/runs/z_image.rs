//! Z-Image: the transformer with a layer of each kind, width 16, and the two halves of its VAE.
use crate::prelude::*;
use zoo_z_image::models::z_image::{
    VaeConfig, ZImageTransformer2DModel,
    transformer::Config,
    vae::{Decoder, Encoder},
};

type Model = (ZImageTransformer2DModel, Encoder, Decoder);

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "in_channels": 4, "dim": 24, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2,
            "n_kv_heads": 2, "cap_feat_dim": 6, "axes_dims": [4, 4, 4], "axes_lens": [16, 8, 8],
            "use_accelerated_attn": false
        }"#,
    )?;
    let vae = VaeConfig {
        latent_channels: 4,
        block_out_channels: vec![4, 8],
        layers_per_block: 1,
        norm_num_groups: 2,
        ..Default::default()
    };
    Ok((
        ZImageTransformer2DModel::new(&config, vb.pp("transformer"))?,
        Encoder::new(&vae, vb.pp("vae.encoder"))?,
        Decoder::new(&vae, vb.pp("vae.decoder"))?,
    ))
}

run!(|model| {
    let image = Tensor::arange(0f32, 192., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 8, 8))?;
    let latent = model.1.forward(&image)?.narrow(1, 0, 4)?;
    let time = Tensor::new(&[0.3f32], &Device::Cpu)?;
    let text = Tensor::arange(0f32, 18., &Device::Cpu)?
        .cos()?
        .reshape((1, 3, 6))?;
    let valid = Tensor::ones((1, 3), DType::U8, &Device::Cpu)?;
    let latent = model
        .0
        .forward(&latent.unsqueeze(2)?, &time, &text, &valid)?;
    mean_square(&model.2.forward(&latent.squeeze(2)?)?)
});

//! ViT: two layers of width 16, an image of 8 by 8 in four patches.
use crate::prelude::*;
use zoo_vit::models::vit::{self, Config};

type Model = vit::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 8, "patch_size": 4,
            "num_channels": 3, "qkv_bias": true
        }"#,
    )?;
    Ok(Model::new(&config, 3, vb)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 192., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 8, 8))?;
    mean_square(&model.forward(&image)?)
});

//! SigLIP: a layer of width 16 for images and texts, two texts and two images.
use crate::prelude::*;
use zoo_siglip::models::siglip::{self, Config};

type Model = siglip::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "text_config": {
                "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 4
            },
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 8, "patch_size": 4
            }
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 1], [2, 4, 6, 1]], &Device::Cpu)?;
    let images = Tensor::arange(0f32, 384., &Device::Cpu)?
        .sin()?
        .reshape((2, 3, 8, 8))?;
    let (per_text, _) = model.forward(&images, &ids)?;
    mean_square(&per_text)
});

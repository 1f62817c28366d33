//! Moondream: a layer of each kind for texts of width 16, for an image of two patches. Patches
//! are of 14 by 14 and 1152 wide, always.
use crate::prelude::*;
use zoo_moondream::models::moondream::{self, Config};

type Model = moondream::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "phi_config": {
                "vocab_size": 12, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_inner": 24,
                "n_head": 2, "rotary_dim": 4, "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false, "pad_vocab_size_multiple": 4
            },
            "vision_config": {
                "image_embedding_dim": 1152, "model_dim": 16, "hidden_dim": 8, "hidden_features": 8,
                "embed_len": 1, "embed_dim": 1152, "num_blocks": 1, "num_heads": 2,
                "act": "gelu_pytorch_tanh"
            }
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 588., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 14, 14))?;
    let seen = model.vision_encoder().forward(&image)?;
    let start = Tensor::new(&[[0u32]], &Device::Cpu)?;
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    model.text_model().clear_kv_cache();
    mean_square(&model.text_model().forward_with_img(&start, &ids, &seen)?)
});

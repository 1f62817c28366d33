//! The Mistral inside of NV-Embed 2: two layers of width 16, four tokens. The model around it has
//! fixed sizes.
use crate::prelude::*;
use zoo_nvembed_v2::models::{mistral::Config, nvembed_v2::embedding};

type Model = embedding::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let mask = Tensor::ones((1, 4), DType::F32, &Device::Cpu)?;
    mean_square(&model.forward(&mask, &ids, DType::F32)?)
});

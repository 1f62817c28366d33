//! Granite 4: two layers with attention, which are all that candle has, width 16, four tokens.
use crate::prelude::*;
use zoo_granitemoehybrid::models::granitemoehybrid::{
    GraniteMoeHybrid, GraniteMoeHybridCache, GraniteMoeHybridConfig, GraniteMoeHybridInternalConfig,
};

type Model = GraniteMoeHybrid;

fn config() -> Result<GraniteMoeHybridInternalConfig> {
    let config: GraniteMoeHybridConfig = serde_json::from_str(
        r#"{
            "hidden_size": 16, "intermediate_size": 24, "vocab_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 16, "layer_types": ["attention", "attention"],
            "attention_multiplier": 0.4, "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
            "logits_scaling": 2.0, "shared_intermediate_size": 20
        }"#,
    )?;
    Ok(config.into_config(false))
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(GraniteMoeHybrid::load(vb, &config()?)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let mut cache = GraniteMoeHybridCache::new(false, DType::F32, &config()?, &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0, &mut cache)?)
});

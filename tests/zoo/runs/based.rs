//! Based: a layer of each of the three mixers, width 16, four tokens. Its cache cannot be cleared
//! from outside, so each run has a copy.
use crate::prelude::*;
use zoo_based::models::based::{self, Config};

type Model = based::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 16, "n_embd": 16, "n_inner": 32, "n_layer": 3, "n_head": 2,
            "layer_norm_epsilon": 1e-5, "alt_mixer_layers": [1], "alt_mixer_2_layers": [2],
            "alt_mixer": { "num_heads": 2, "feature_dim": 8, "feature_map": { "input_dim": 8 } },
            "alt_mixer_2": { "num_heads": 2, "window_size": 8 }
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.clone().forward(&ids, 0)?)
}, unreached: ["transformer.layers.0.mixer.conv.conv"]);

//! MixFormer (Phi 1.5): two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_mixformer::models::mixformer::{Config, MixFormerSequentialForCausalLM};

type Model = MixFormerSequentialForCausalLM;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_inner": 24, "n_head": 2,
            "rotary_dim": 4, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": false, "pad_vocab_size_multiple": 4
        }"#,
    )?;
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids)?)
});

//! Marian: a layer of width 16 in encoder and decoder, four and three tokens.
use crate::prelude::*;
use zoo_marian::models::marian::{Config, MTModel};

type Model = MTModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "vocab_size": 12, "decoder_vocab_size": null, "max_position_embeddings": 16,
            "encoder_layers": 1, "encoder_ffn_dim": 24, "encoder_attention_heads": 2,
            "decoder_layers": 1, "decoder_ffn_dim": 24, "decoder_attention_heads": 2,
            "use_cache": false, "is_encoder_decoder": true, "activation_function": "swish",
            "d_model": 16, "decoder_start_token_id": 0, "scale_embedding": true, "pad_token_id": 0,
            "eos_token_id": 1, "forced_eos_token_id": 1, "share_encoder_decoder_embeddings": true
        }"#,
    )?;
    Ok(MTModel::new(&config, vb)?)
}

run!(|model| {
    model.reset_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let started = Tensor::new(&[[0u32, 4, 2]], &Device::Cpu)?;
    let encoded = model.encoder().forward(&ids, 0)?;
    mean_square(&model.decode(&started, &encoded, 0)?)
}, unreached: ["model.shared"]);

//! The decoder of Parler-TTS: two layers of width 16, two codebooks, three frames. The DAC beside
//! it has fixed sizes.
use crate::prelude::*;
use zoo_parler_tts::models::parler_tts::{Decoder, DecoderConfig};

type Model = Decoder;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: DecoderConfig = serde_json::from_str(
        r#"{
            "vocab_size": 12, "max_position_embeddings": 16, "num_hidden_layers": 2, "ffn_dim": 24,
            "num_attention_heads": 2, "num_key_value_heads": 1,
            "num_cross_attention_key_value_heads": 2, "activation_function": "gelu",
            "hidden_size": 16, "scale_embedding": false, "num_codebooks": 2, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false,
            "rope_embeddings": false, "rope_theta": 10000.0
        }"#,
    )?;
    Ok(Decoder::new(&config, vb)?)
}

run!(|model| {
    model.clear_kv_cache();
    let codes = Tensor::new(&[[[1u32, 5, 3], [2, 4, 6]]], &Device::Cpu)?;
    let text = Tensor::arange(0f32, 64., &Device::Cpu)?
        .sin()?
        .reshape((1, 4, 16))?;
    let logits = model.forward(&codes, None, None, &text, None, 0)?;
    mean_square(&Tensor::stack(&logits, 0)?)
});

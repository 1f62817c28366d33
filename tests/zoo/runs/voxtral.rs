//! Voxtral: a layer of width 16 for sound and text, two tokens of sound and two of text.
use crate::prelude::*;
use zoo_voxtral::models::voxtral::{
    VoxtralCache, VoxtralConfig, VoxtralEncoderConfig, VoxtralForConditionalGeneration,
    VoxtralLlamaConfig,
};

type Model = VoxtralForConditionalGeneration;

fn text() -> VoxtralLlamaConfig {
    VoxtralLlamaConfig {
        hidden_size: 16,
        intermediate_size: 24,
        vocab_size: 12,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: Some(8),
        use_flash_attn: false,
        rms_norm_eps: 1e-5,
        rope_theta: 10000.,
        max_position_embeddings: 16,
        tie_word_embeddings: false,
    }
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    let audio_config = VoxtralEncoderConfig {
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: 8,
        num_mel_bins: 4,
        max_source_positions: 4,
        ..Default::default()
    };
    let config = VoxtralConfig {
        audio_config,
        text_config: text(),
        audio_token_id: 9,
        projector_hidden_act: "gelu".into(),
    };
    Ok(VoxtralForConditionalGeneration::new(&config, vb)?)
}

run!(|model| {
    let mel = Tensor::arange(0f32, 32., &Device::Cpu)?
        .sin()?
        .reshape((1, 4, 8))?;
    let ids = Tensor::new(&[[1u32, 9, 9, 3]], &Device::Cpu)?;
    let mut cache = VoxtralCache::new(false, DType::F32, &text(), &Device::Cpu)?;
    mean_square(&model.forward(&ids, Some(&mel), &mut cache, 0)?)
});

//! TrOCR: a layer of width 16 in encoder and decoder, one image and three tokens, one after the
//! other: candle masks the image as if it was the text.
use crate::prelude::*;
use zoo_trocr::models::{
    trocr::{TrOCRConfig, TrOCRModel},
    vit,
};

type Model = TrOCRModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let encoder: vit::Config = serde_json::from_str(
        r#"{
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 8, "patch_size": 4,
            "num_channels": 3, "qkv_bias": false
        }"#,
    )?;
    let decoder = TrOCRConfig {
        vocab_size: 12,
        d_model: 16,
        cross_attention_hidden_size: 16,
        decoder_layers: 1,
        decoder_attention_heads: 2,
        decoder_ffn_dim: 24,
        max_position_embeddings: 8,
        tie_word_embeddings: false,
        ..Default::default()
    };
    Ok(TrOCRModel::new(&encoder, &decoder, vb)?)
}

run!(|model| {
    model.reset_kv_cache();
    let image = Tensor::arange(0f32, 192., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 8, 8))?;
    let seen = model.encoder().forward(&image)?;
    let mut logits = Vec::new();
    for (place, id) in [1u32, 5, 3].into_iter().enumerate() {
        let ids = Tensor::new(&[[id]], &Device::Cpu)?;
        logits.push(model.decode(&ids, &seen, place)?);
    }
    mean_square(&Tensor::cat(&logits, 1)?)
});

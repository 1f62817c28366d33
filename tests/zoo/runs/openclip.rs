//! The text model of OpenCLIP: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_openclip::models::openclip::text_model::{Config, OpenClipTextTransformer};

type Model = OpenClipTextTransformer;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config = Config {
        vocab_size: 12,
        embed_dim: 16,
        intermediate_size: 24,
        max_position_embeddings: 8,
        pad_with: None,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        projection_dim: 8,
    };
    Ok(OpenClipTextTransformer::new(vb, &config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids)?)
});

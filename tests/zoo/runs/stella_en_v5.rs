//! Stella 5 with its head: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_stella_en_v5::models::stella_en_v5::{Config, EmbedDim, EmbeddingModel, ModelVariant};

type Model = EmbeddingModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let mut config = Config::new_400_m_v5(EmbedDim::Dim256);
    config.variant = ModelVariant::Small;
    config.vocab_size = 12;
    config.hidden_size = 16;
    config.intermediate_size = 24;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 2;
    config.max_position_embeddings = 16;
    config.embed_head.in_features = 16;
    config.embed_head.out_features = 6;
    let head = vb.pp("2_Dense");
    Ok(EmbeddingModel::new(&config, vb, head)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let mask = Tensor::ones((1, 4), DType::U8, &Device::Cpu)?;
    mean_square(&model.forward(&ids, &mask)?)
});

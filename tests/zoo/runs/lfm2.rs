//! LFM 2: a layer with a convolution and one with attention, width 16, four tokens, without a
//! cache.
use crate::prelude::*;
use zoo_lfm2::models::lfm2::{self, Cache, Config, LayerType};

type Model = lfm2::Model;

fn config() -> Config {
    Config {
        vocab_size: 12,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        norm_eps: 1e-5,
        rope_theta: 10000.,
        max_position_embeddings: 16,
        conv_l_cache: 3,
        conv_bias: false,
        layer_types: vec![LayerType::Conv, LayerType::FullAttention],
        tie_embedding: false,
        bos_token_id: None,
        eos_token_id: None,
        use_flash_attn: false,
    }
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    Ok(Model::new(&config(), vb)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    let mut cache = Cache::new(false, DType::F32, &config(), &Device::Cpu)?;
    mean_square(&model.forward(&ids, 0, &mut cache)?)
});

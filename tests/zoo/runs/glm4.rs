//! GLM 4: two layers of width 16, four tokens.
use crate::prelude::*;
use zoo_glm4::models::glm4::{self, Config};

type Model = glm4::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config = Config {
        num_layers: 2,
        padded_vocab_size: 12,
        hidden_size: 16,
        ffn_hidden_size: 24,
        kv_channels: 8,
        num_attention_heads: 2,
        seq_length: 16,
        layernorm_epsilon: 1e-5,
        rmsnorm: true,
        apply_residual_connection_post_layernorm: false,
        post_layer_norm: true,
        add_bias_linear: false,
        add_qkv_bias: true,
        bias_dropout_fusion: true,
        multi_query_attention: true,
        multi_query_group_num: 1,
        apply_query_key_layer_scaling: true,
        attention_softmax_in_fp32: true,
        fp32_residual_connection: false,
        rope_ratio: 1,
        eos_token_id: None,
    };
    Ok(Model::new(&config, vb)?)
}

run!(|model| {
    model.reset_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3, 2]], &Device::Cpu)?;
    mean_square(&model.forward(&ids)?)
});

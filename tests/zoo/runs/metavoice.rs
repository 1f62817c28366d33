//! MetaVoice: a layer of each of its two transformers, width 16, three tokens. Without the
//! speaker encoder, which divides by a norm that is zero where all of `relu` is.
use crate::prelude::*;
use zoo_metavoice::models::metavoice::{gpt, transformer};

type Model = (transformer::Model, gpt::Model);

pub fn build(vb: VarBuilder) -> Result<Model> {
    let first = transformer::Config {
        n_layer: 1,
        n_head: 2,
        dim: 16,
        vocab_size: 12,
        speaker_emb_dim: 6,
        block_size: 8,
        intermediate_size: Some(24),
        ..transformer::Config::cfg1b_v0_1()
    };
    let second = gpt::Config {
        n_layer: 1,
        n_head: 2,
        n_embd: 16,
        block_size: 8,
        vocab_sizes: vec![12, 10],
        target_vocab_sizes: vec![10, 10],
        ..gpt::Config::cfg1b_v0_1()
    };
    Ok((
        transformer::Model::new(&first, vb.pp("first_stage"))?,
        gpt::Model::new(second, vb.pp("second_stage"))?,
    ))
}

run!(|model| {
    model.0.clear_kv_cache();
    let ids = Tensor::new(&[[1u32, 5, 3], [1, 5, 3]], &Device::Cpu)?;
    let speaker = Tensor::arange(0f32, 6., &Device::Cpu)?
        .sin()?
        .reshape((1, 1, 6))?;
    let first = model.0.forward(&ids, &speaker, 0)?.flatten_all()?;
    let codes = Tensor::new(&[[[1u32, 5, 3], [2, 4, 6]]], &Device::Cpu)?;
    let second = Tensor::stack(&model.1.forward(&codes)?, 0)?.flatten_all()?;
    mean_square(&Tensor::cat(&[first, second], 0)?)
});

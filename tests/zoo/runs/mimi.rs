//! Mimi: one layer of width 8 in each transformer, two filters. A window of two frames has no
//! need of the buffer of candle's `RotatingKvCache`, which has no gradient. Its positions cannot
//! be set back from outside, so each run has a copy. What comes before the codes, which are whole numbers,
//! has no gradient.
use crate::prelude::*;
use zoo_mimi::models::mimi::{
    self, Config,
    conv::{Norm, PadMode},
    encodec::ResampleMethod,
    seanet, transformer,
};

type Model = mimi::Model;

pub fn build(vb: VarBuilder) -> Result<Model> {
    // How often each code was used, which divides, is positive.
    let vb = changed(vb, |name, tensor| {
        let is_count = name.ends_with("cluster_usage");
        is_count.then(|| tensor.abs()? + 1.)
    });
    let seanet = seanet::Config {
        dimension: 8,
        channels: 1,
        causal: true,
        n_filters: 2,
        n_residual_layers: 1,
        activation: candle_nn::Activation::Elu(1.),
        compress: 2,
        dilation_base: 2,
        disable_norm_outer_blocks: 0,
        final_activation: None,
        kernel_size: 7,
        residual_kernel_size: 3,
        last_kernel_size: 3,
        lstm: 0,
        norm: Norm::WeightNorm,
        pad_mode: PadMode::Constant,
        ratios: vec![2],
        true_skip: true,
    };
    let transformer = transformer::Config {
        d_model: 8,
        num_heads: 2,
        num_layers: 1,
        dim_feedforward: 12,
        context: 2,
        max_seq_len: 16,
        ..Config::v0_1(None).transformer
    };
    let config = Config {
        channels: 1,
        sample_rate: 8.,
        frame_rate: 2.,
        renormalize: true,
        resample_method: ResampleMethod::Conv,
        seanet,
        transformer,
        quantizer_n_q: 2,
        quantizer_bins: 5,
        quantizer_dim: 6,
    };
    Ok(Model::new(config, vb)?)
}

run!(|model| {
    let mut model = model.clone();
    let audio = Tensor::arange(0f32, 16., &Device::Cpu)?
        .sin()?
        .reshape((1, 1, 16))?;
    let encoded = model.encode_pre_quantize(&audio)?;
    let codes = Tensor::new(&[[[1u32, 4, 2], [0, 3, 1]]], &Device::Cpu)?;
    let decoded = model.decode(&codes)?;
    mean_square(&Tensor::cat(
        &[encoded.flatten_all()?, decoded.flatten_all()?],
        0,
    )?)
}, unreached: ["quantizer.*.input_proj"]);

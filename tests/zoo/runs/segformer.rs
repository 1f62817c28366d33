//! SegFormer: two blocks of one layer, widths 8 and 16, an image of 16 by 16.
use crate::prelude::*;
use zoo_segformer::models::segformer::{Config, SemanticSegmentationModel};

type Model = SemanticSegmentationModel;

pub fn build(vb: VarBuilder) -> Result<Model> {
    let config: Config = serde_json::from_str(
        r#"{
            "num_channels": 3, "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1],
            "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2],
            "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "hidden_act": "gelu",
            "layer_norm_eps": 1e-5, "decoder_hidden_size": 12
        }"#,
    )?;
    Ok(SemanticSegmentationModel::new(&config, 3, vb)?)
}

run!(|model| {
    let image = Tensor::arange(0f32, 768., &Device::Cpu)?
        .sin()?
        .reshape((1, 3, 16, 16))?;
    mean_square(&model.forward(&image)?)
}, unreached: ["*.dwconv.dwconv"]);

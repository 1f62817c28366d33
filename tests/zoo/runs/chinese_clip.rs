//! Chinese CLIP: a layer of width 16 for texts and images, two texts and two images.
use crate::prelude::*;
use candle_core::Shape;
use candle_nn::{Init, var_builder::SimpleBackend};
use zoo_chinese_clip::models::chinese_clip::{
    ChineseClipConfig, ChineseClipModel, text_model::ChineseClipTextConfig,
    vision_model::ChineseClipVisionConfig,
};

type Model = ChineseClipModel;

/// Checkpoints have no pooler, and candle's cannot run.
struct NoPooler<'a>(VarBuilder<'a>);

impl SimpleBackend for NoPooler<'_> {
    fn get(
        &self,
        s: Shape,
        name: &str,
        h: Init,
        _: DType,
        _: &Device,
    ) -> candle_core::Result<Tensor> {
        self.0.get_with_hints(s, name, h)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.0.get_unchecked(name)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        !name.contains("pooler") && self.0.contains_tensor(name)
    }
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    let vb = VarBuilder::from_backend(Box::new(NoPooler(vb)), DType::F32, Device::Cpu);
    let text_config = ChineseClipTextConfig {
        vocab_size: 12,
        hidden_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 24,
        max_position_embeddings: 8,
        ..Default::default()
    };
    let vision_config = ChineseClipVisionConfig {
        hidden_size: 16,
        intermediate_size: 24,
        projection_dim: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        image_size: 8,
        patch_size: 4,
        ..Default::default()
    };
    let config = ChineseClipConfig {
        text_config,
        vision_config,
        projection_dim: 8,
        logit_scale_init_value: 1.,
        image_size: 8,
    };
    Ok(ChineseClipModel::new(vb, &config)?)
}

run!(|model| {
    let ids = Tensor::new(&[[1u32, 5, 3], [2, 4, 6]], &Device::Cpu)?;
    let images = Tensor::arange(0f32, 384., &Device::Cpu)?
        .sin()?
        .reshape((2, 3, 8, 8))?;
    let (per_text, _) = model.forward(&images, &ids, None, None)?;
    mean_square(&per_text)
});

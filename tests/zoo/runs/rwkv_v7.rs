//! RWKV 7: two layers of width 16, three tokens, one after the other.
use crate::prelude::*;
use candle_core::Shape;
use candle_nn::{Init, var_builder::SimpleBackend};
use zoo_rwkv_v7::models::rwkv_v7::{self, Config, ModelVersion, State};

type Model = rwkv_v7::Model;

fn config() -> Config {
    Config {
        version: ModelVersion::V7,
        vocab_size: 12,
        hidden_size: 16,
        num_hidden_layers: 2,
        head_size: 8,
        intermediate_size: Some(24),
        rescale_every: 0,
    }
}

/// candle asks the checkpoint for the ranks of four factors.
struct Ranks<'a>(VarBuilder<'a>);

impl SimpleBackend for Ranks<'_> {
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
        self.0.get((16, 4), name)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains_tensor(name)
    }
}

pub fn build(vb: VarBuilder) -> Result<Model> {
    let vb = VarBuilder::from_backend(Box::new(Ranks(vb)), DType::F32, Device::Cpu);
    Ok(Model::new(&config(), vb)?)
}

run!(|model| {
    let mut state = State::new(&config(), &Device::Cpu)?;
    let mut logits = Vec::new();
    for id in [1u32, 5, 3] {
        let ids = Tensor::new(&[id], &Device::Cpu)?;
        logits.push(model.forward(&ids, &mut state, &[id])?);
    }
    mean_square(&Tensor::stack(&logits, 0)?)
});

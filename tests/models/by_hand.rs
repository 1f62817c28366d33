//! A model without any derive that holds LoRA layers by hand: it is its own LoRA model.

use super::life::{Run, adapted, layer_norm, linear, live};
use candle_core::{DType, Result, Tensor};
use candle_nn::{Linear, Module};
use lora::layers::{LoraLayerNorm, LoraLinear};
use lora::{Builder, Cursor, CursorMut, LoraConfig, LoraModel, LoraModule, Mark};
use lora_tests::fixed;

/// The base model, and beside it the LoRA model that its author wrote.
#[derive(Clone, Debug)]
struct Net {
    fc1: Linear,
    norm: candle_nn::LayerNorm,
    fc2: Linear,
}

#[derive(Clone, Debug)]
struct NetWithLora {
    fc1: LoraLinear,
    norm: LoraLayerNorm,
    fc2: LoraLinear,
}

impl LoraModel for Net {
    type Lora = NetWithLora;

    fn adapt(&self, cx: &mut Builder<'_>) -> lora::Result<NetWithLora> {
        Ok(NetWithLora {
            fc1: cx.marked("fc1", Mark::rank(), &self.fc1)?,
            norm: cx.field("norm", &self.norm)?,
            fc2: cx.marked("fc2", Mark::trainable(), &self.fc2)?,
        })
    }
}

impl LoraModule for NetWithLora {
    type Base = Net;

    fn to_base(&self) -> lora::Result<Net> {
        Ok(Net {
            fc1: self.fc1.to_base()?,
            norm: self.norm.to_base()?,
            fc2: self.fc2.to_base()?,
        })
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.field("fc1", &self.fc1);
        cursor.field("norm", &self.norm);
        cursor.field("fc2", &self.fc2);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.field("fc1", &mut self.fc1);
        cursor.field("norm", &mut self.norm);
        cursor.field("fc2", &mut self.fc2);
    }
}

impl Run for Net {
    fn run(&mut self) -> Result<Tensor> {
        let xs = fixed((3, 6), DType::F32, 9);
        xs.apply(&self.fc1)?
            .apply(&self.norm)?
            .relu()?
            .apply(&self.fc2)
    }
}

impl Run for NetWithLora {
    fn run(&mut self) -> Result<Tensor> {
        let xs = fixed((3, 6), DType::F32, 9);
        xs.apply(&self.fc1)?
            .apply(&self.norm)?
            .relu()?
            .apply(&self.fc2)
    }
}

fn net() -> Net {
    Net {
        fc1: linear(6, 8, 1),
        norm: layer_norm(8, 3),
        fc2: linear(8, 2, 5),
    }
}

#[test]
fn both_models_by_hand() {
    let model = live(net(), &LoraConfig::new(2));
    assert_eq!(adapted(&model), ["fc1"]);
}

/// A model that only exists with its adapters: `type Lora = Self`.
#[derive(Clone, Debug)]
struct Adapted {
    fc1: LoraLinear,
    fc2: LoraLinear,
}

impl LoraModel for Adapted {
    type Lora = Self;

    fn adapt(&self, _: &mut Builder<'_>) -> lora::Result<Self> {
        Ok(self.clone())
    }
}

impl LoraModule for Adapted {
    type Base = Self;

    fn to_base(&self) -> lora::Result<Self> {
        let mut merged = self.clone();
        merged.merge()?;
        Ok(merged)
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.field("fc1", &self.fc1);
        cursor.field("fc2", &self.fc2);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.field("fc1", &mut self.fc1);
        cursor.field("fc2", &mut self.fc2);
    }
}

impl Module for Adapted {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc1)?.relu()?.apply(&self.fc2)
    }
}

#[test]
fn its_own_lora_model() {
    let config = LoraConfig::new(2);
    let make = |seed| Adapted {
        fc1: LoraLinear::new(&linear(6, 8, 1), &config.clone().seed(seed)).unwrap(),
        fc2: LoraLinear::new(&linear(8, 2, 3), &config.clone().seed(seed + 1)).unwrap(),
    };
    let mut model = make(1);
    lora_tests::fill_adapters(&model);
    let xs = fixed((3, 6), DType::F32, 9);
    let expected = model.forward(&xs).unwrap();
    assert_eq!(model.trainable_vars().len(), 4);
    let loss = expected.sqr().unwrap().sum_all().unwrap();
    model.backward(&loss).unwrap();
    let check = model.check_gradients(|model| Ok(model.forward(&xs)?.sqr()?.sum_all()?));
    check.unwrap();

    let directory = tempfile::tempdir().unwrap();
    model.save_adapter(directory.path()).unwrap();
    let mut loaded = make(7);
    loaded.load_adapter(directory.path()).unwrap();
    lora_tests::assert_close("loaded", &loaded.forward(&xs).unwrap(), &expected, 1e-6);
    model.merge().unwrap();
    lora_tests::assert_close("merged", &model.forward(&xs).unwrap(), &expected, 1e-5);
}

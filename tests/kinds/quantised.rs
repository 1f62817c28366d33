//! Quantised weights: a frozen layer with trained layers around it.

use super::{F32, adapted, linear, live};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Module, Result, Tensor};
use candle_nn::Linear;
use lora::LoraModel;
use lora::layers::QLinear;
use lora_tests::fixed;
use std::sync::Arc;

#[derive(Clone, LoraModel)]
struct Net {
    #[lora(rank)]
    before: Linear,
    embed: QLinear,
    #[lora(rank)]
    fc: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.before)?
            .apply(&self.embed)?
            .gelu()?
            .apply(&self.fc)
    }
}

#[test]
fn what_comes_before_and_after_is_trained() {
    let weight = QTensor::quantize(&fixed((4, 32), F32, 1), GgmlDType::Q8_0).unwrap();
    let net = Net {
        before: linear(32, 32, 2),
        embed: QLinear::new(Arc::new(weight), None).unwrap(),
        fc: linear(4, 4, 3),
    };
    let model = live("quantised", &net, &fixed((3, 32), F32, 5));
    assert_eq!(adapted(&model), ["before", "fc"]);
}

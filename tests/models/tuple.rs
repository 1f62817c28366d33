//! Tuple structs, nested.

use super::life::{Run, adapted, linear, live};
use candle_core::{DType, Result, Tensor};
use candle_nn::{Activation, Linear, Module};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::fixed;

#[derive(Clone, Debug, LoraModel)]
struct Mlp(#[lora(rank)] Linear, Activation, #[lora(trainable)] Linear);

#[lora::forward]
impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.0)?.apply(&self.1)?.apply(&self.2)
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Net(Vec<Mlp>);

#[lora::forward]
impl Run for Net {
    fn run(&mut self) -> Result<Tensor> {
        let mut xs = fixed((3, 6), DType::F32, 9);
        for mlp in &self.0 {
            xs = mlp.forward(&xs)?;
        }
        Ok(xs)
    }
}

#[test]
fn tuple_structs() {
    let mlp = |seed| Mlp(linear(6, 9, seed), Activation::Gelu, linear(9, 6, seed + 2));
    let model = live(Net(vec![mlp(1), mlp(5)]), &LoraConfig::new(2));
    assert_eq!(adapted(&model), ["0.0", "1.0"]);
    let names: Vec<String> = model.named_params().into_iter().map(|p| p.path).collect();
    assert_eq!(names[4], "0.2.weight");
}

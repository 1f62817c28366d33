//! Lists of modules, and modules of any type.

use super::F32;
use candle_core::{Device, Result, Tensor};
use candle_nn::{Activation, LayerNorm, Linear, Module};
use lora::layers::{AnyModule, Sequential, seq};
use lora::{LoraConfig, LoraModel, LoraModule, Names};
use lora_tests::{assert_close, fixed, whole_life};
use std::collections::HashMap;

fn linear(outputs: usize, inputs: usize, seed: usize) -> Linear {
    let bias = fixed(outputs, F32, seed + 1);
    Linear::new(fixed((outputs, inputs), F32, seed), Some(bias))
}

#[derive(Clone, Debug, LoraModel)]
struct Block {
    #[lora(rank)]
    fc: Linear,
    norm: LayerNorm,
}

#[lora::forward]
impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs + xs.apply(&self.norm)?.apply(&self.fc)?
    }
}

fn block(seed: usize) -> Block {
    let norm = LayerNorm::new(fixed(4, F32, seed + 2), fixed(4, F32, seed + 3), 1e-5);
    let fc = linear(4, 4, seed);
    Block { fc, norm }
}

/// All that a list can hold: layers, blocks, lists, activations, closures.
#[derive(Clone, Debug, LoraModel)]
struct Net {
    layers: Sequential,
    #[lora(rank)]
    neck: Sequential,
    head: AnyModule,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.layers)?.apply(&self.neck)?.apply(&self.head)
    }
}

fn net() -> Net {
    let inner = seq().add(block(20)).add(Activation::Silu);
    Net {
        layers: seq()
            .add(linear(4, 3, 1))
            .add(block(10))
            .add(inner)
            .add_fn(|xs| xs * 0.5),
        neck: seq()
            .add(linear(4, 4, 30))
            .add(candle_nn::ops::Identity)
            .add(Activation::Gelu),
        head: AnyModule::new(linear(2, 4, 40)),
    }
}

#[test]
fn a_list_lives_as_its_layers_do() {
    let xs = fixed((5, 3), F32, 7);
    let config = LoraConfig::new(2).seed(1).modules_to_save(["head"]);
    let model = whole_life(
        "Sequential",
        &net(),
        &config,
        |net| net.forward(&xs),
        |model| model.forward(&xs),
    );
    let adapted: Vec<_> = (model.layer_status().into_iter())
        .map(|layer| layer.name)
        .collect();
    assert_eq!(adapted, ["layers.1.fc", "layers.2.0.fc", "neck.0"]);
    let paths: Vec<_> = (model.named_params().into_iter())
        .filter(|param| !param.path.contains("lora_"))
        .map(|param| param.path)
        .collect();
    let expected = [
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.fc.weight",
        "layers.1.fc.bias",
        "layers.1.norm.weight",
        "layers.1.norm.bias",
        "layers.2.0.fc.weight",
        "layers.2.0.fc.bias",
        "layers.2.0.norm.weight",
        "layers.2.0.norm.bias",
        "neck.0.weight",
        "neck.0.bias",
        "head.weight",
        "head.bias",
    ];
    assert_eq!(paths, expected);
}

#[test]
fn a_list_has_the_methods_of_candles() {
    let list = seq()
        .add(linear(4, 3, 1))
        .add(Activation::Relu)
        .add_fn(|xs| xs.sqr());
    let candle = candle_nn::seq()
        .add(linear(4, 3, 1))
        .add(Activation::Relu)
        .add_fn(|xs| xs.sqr());
    assert_eq!((list.len(), list.is_empty()), (3, false));
    assert!(seq().is_empty());
    let model = list.to_lora(&LoraConfig::new(2).target_modules(["0"]));
    let model = model.unwrap();
    assert_eq!((model.len(), model.is_empty()), (3, false));
    let xs = fixed((2, 3), F32, 5);
    let expected = candle.forward_all(&xs).unwrap();
    for outputs in [list.forward_all(&xs), model.forward_all(&xs)] {
        for (output, expected) in outputs.unwrap().iter().zip(&expected) {
            assert_close("forward_all", output, expected, 1e-6);
        }
    }
    let none = Tensor::ones((1, 2), F32, &Device::Cpu).unwrap();
    assert_eq!(seq().forward(&none).unwrap().dims(), [1, 2]);
}

/// A clone of the base shares its modules, a clone of the LoRA model its variables; a snapshot shares none.
#[test]
fn clones_share() {
    let xs = fixed((2, 3), F32, 5);
    let model = net().to_lora(&LoraConfig::new(2).seed(1)).unwrap();
    let (clone, snapshot) = (model.clone(), model.deep_clone().unwrap());
    let before = model.forward(&xs).unwrap();
    lora_tests::fill_adapters(&model);
    let after = model.forward(&xs).unwrap();
    assert_close("clone", &clone.forward(&xs).unwrap(), &after, 0.0);
    assert_close("snapshot", &snapshot.forward(&xs).unwrap(), &before, 0.0);
    assert_eq!(
        format!("{:?}", net().head),
        format!("AnyModule({:?})", std::any::type_name::<Linear>())
    );
}

#[test]
fn paths_are_the_checkpoints() {
    let tensors = HashMap::from([
        ("model.mlp.0.weight".to_string(), fixed((4, 3), F32, 1)),
        ("model.mlp.2.weight".to_string(), fixed((3, 4), F32, 2)),
    ]);
    let names = Names::new();
    let vb = candle_nn::VarBuilder::from_tensors(tensors, F32, &Device::Cpu);
    let vb = names.record(vb).pp("model.mlp");
    let list = seq()
        .add(candle_nn::linear_no_bias(3, 4, vb.pp(0)).unwrap())
        .add(Activation::Silu)
        .add(candle_nn::linear_no_bias(4, 3, vb.pp(2)).unwrap());
    let config = LoraConfig::new(2).target_modules(["mlp.2"]);
    let model = list.to_lora(&config).unwrap();
    assert_eq!(model.layer_status()[0].name, "model.mlp.2");
}

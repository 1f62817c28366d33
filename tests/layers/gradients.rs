//! Gradients of every LoRA layer and of every frozen layer's input, against finite differences in f64.

use crate::ops::gradients::conv2d_configs;
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{
    BatchNorm, Conv1d, Conv1dConfig, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, Module,
    ModuleT, RmsNorm,
};
use lora::{LoraConfig, LoraModel, LoraModule, TrainBias};
use lora_tests::{check_gradients, fill_adapters, fixed, var};

const F64: DType = DType::F64;

/// Checks the gradients of the model's trainable parameters, and of the input `x`.
#[track_caller]
fn check_model<M: LoraModule>(
    what: &str,
    model: &M,
    x: &Var,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) {
    fill_adapters(model);
    let params = model.named_params();
    let trainable: Vec<_> = params.iter().filter(|p| p.is_trainable()).collect();
    let vars: Vec<Var> = model.trainable_vars();
    let mut named: Vec<(&str, &Var)> = trainable
        .iter()
        .map(|p| p.path.as_str())
        .zip(&vars)
        .collect();
    if x.dtype().is_float() {
        named.push(("input", x));
    }
    check_gradients(what, &named, || f(x));
}

#[test]
fn lora_linear() {
    let base = Linear::new(fixed((4, 5), F64, 1), Some(fixed(4, F64, 2)));
    let config = LoraConfig::new(2)
        .alpha(3.0)
        .train_bias(TrainBias::LoraOnly);
    let model = base.to_lora(&config).unwrap();
    for shape in [vec![2, 5], vec![2, 3, 5], vec![2, 1, 3, 5]] {
        check_model("LoraLinear", &model, &var(shape, 3), |x| model.forward(x));
    }
}

#[test]
fn lora_convolutions() {
    for (channels, out, kernel, config, (h, w)) in conv2d_configs() {
        let weight = fixed((out, channels / config.groups, kernel, kernel), F64, 1);
        let base = Conv2d::new(weight, Some(fixed(out, F64, 2)), config);
        let lora = LoraConfig::new(4).train_bias(TrainBias::All);
        let model = base.to_lora(&lora).unwrap();
        let x = var((2, channels, h, w), 3);
        check_model(&format!("LoraConv2d {config:?}"), &model, &x, |x| {
            model.forward(x)
        });
    }
    for (padding, stride, dilation, groups) in [(0, 1, 1, 1), (2, 3, 2, 1), (1, 2, 1, 2)] {
        let config = Conv1dConfig {
            padding,
            stride,
            dilation,
            groups,
            cudnn_fwd_algo: None,
        };
        let base = Conv1d::new(
            fixed((6, 4 / groups, 3), F64, 1),
            Some(fixed(6, F64, 2)),
            config,
        );
        let model = base.to_lora(&LoraConfig::new(2)).unwrap();
        let x = var((2, 4, 8), 3);
        check_model(&format!("LoraConv1d {config:?}"), &model, &x, |x| {
            model.forward(x)
        });
    }
}

#[test]
fn lora_embedding() {
    let base = Embedding::new(fixed((6, 3), F64, 1), 3);
    let model = base.to_lora(&LoraConfig::new(2)).unwrap();
    let ids = Tensor::new(&[[1u32, 5, 1]], &candle_core::Device::Cpu).unwrap();
    check_model(
        "LoraEmbedding",
        &model,
        &Var::from_tensor(&ids).unwrap(),
        |ids| model.forward(ids),
    );
}

#[test]
fn frozen_norms_pass_the_gradient() {
    let x = var((2, 6, 5), 3);
    let last = var((2, 5, 6), 3);
    let (weight, bias) = (fixed(6, F64, 1), fixed(6, F64, 2));

    let base = LayerNorm::new(weight.clone(), bias.clone(), 1e-5);
    let model = base.to_frozen().unwrap();
    check_model("LayerNorm", &model, &last, |x| model.forward(x));
    let base = LayerNorm::new_no_bias(weight.clone(), 1e-5);
    let model = base.to_frozen().unwrap();
    check_model("LayerNorm without bias", &model, &last, |x| {
        model.forward(x)
    });
    let base = RmsNorm::new(weight.clone(), 1e-5);
    let model = base.to_frozen().unwrap();
    check_model("RmsNorm", &model, &last, |x| model.forward(x));
    let base = GroupNorm::new(weight.clone(), bias.clone(), 6, 3, 1e-5).unwrap();
    let model = base.to_frozen().unwrap();
    check_model("GroupNorm", &model, &x, |x| model.forward(x));
    let (mean, variance) = (fixed(6, F64, 4), fixed(6, F64, 5).sqr().unwrap());
    let base = BatchNorm::new(6, mean, variance, weight, bias, 1e-5).unwrap();
    let model = base.to_frozen().unwrap();
    check_model("BatchNorm", &model, &x, |x| model.forward_t(x, true));
}

#[test]
fn trained_norms_get_gradients() {
    let x = var((2, 6, 5), 3);
    let (weight, bias) = (fixed(6, F64, 1), fixed(6, F64, 2));
    // A Linear beside each norm gives the conversion something to adapt.
    let linear = Linear::new(fixed((2, 3), F64, 6), None);
    let config = LoraConfig::new(1)
        .target_modules(["1"])
        .modules_to_save(["0"]);

    let norm = LayerNorm::new(weight.clone(), bias.clone(), 1e-5);
    let model = (norm, linear.clone()).to_lora(&config).unwrap();
    let last = var((2, 5, 6), 3);
    check_model("LayerNorm", &model.0, &last, |x| model.0.forward(x));
    assert_eq!(model.0.trainable_vars().len(), 2);

    let norm = GroupNorm::new(weight.clone(), bias.clone(), 6, 2, 1e-5).unwrap();
    let model = (norm, linear.clone()).to_lora(&config).unwrap();
    check_model("GroupNorm", &model.0, &x, |x| model.0.forward(x));
    assert_eq!(model.0.trainable_vars().len(), 2);

    let (mean, variance) = (fixed(6, F64, 4), fixed(6, F64, 5).sqr().unwrap());
    let norm = BatchNorm::new(6, mean, variance, weight, bias, 1e-5).unwrap();
    let model = (norm, linear).to_lora(&config).unwrap();
    check_model("BatchNorm", &model.0, &x, |x| model.0.forward_t(x, true));
    assert_eq!(model.0.trainable_vars().len(), 2);
}

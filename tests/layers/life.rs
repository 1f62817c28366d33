//! What an adapted layer computes: fresh, trained, merged, and without its adapter again.

use super::{F32, conv1d, conv2d, linear};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{
    Activation, AdamW, Conv2d, Conv2dConfig, Embedding, LayerNorm, Linear, Module, Optimizer,
    ParamsAdamW, seq,
};
use lora::layers::LoraLinear;
use lora::{Adapted, LoraConfig, LoraModel, LoraModule, TrainBias};
use lora_tests::{assert_close, fill_adapters, fixed, relative_error, values};

/// Zero effect at first; merged, unmerged and base forward agree; unmerge is exact.
#[track_caller]
fn check_life<B>(what: &str, base: &B, input: &Tensor)
where
    B: LoraModel + Module,
    B::Lora: Module,
{
    let mut model = base
        .to_lora(&LoraConfig::new(4).alpha(6.0).seed(1))
        .unwrap();
    let before = base.forward(input).unwrap();
    assert_close(what, &model.forward(input).unwrap(), &before, 1e-6);

    fill_adapters(&model);
    let adapted = model.forward(input).unwrap();
    assert!(
        relative_error(&adapted, &before).unwrap() > 1e-2,
        "{what}: no effect"
    );
    let weights = |model: &B::Lora| -> Vec<Vec<f64>> {
        let params = model.named_params().into_iter();
        params.map(|param| values(&param.tensor).unwrap()).collect()
    };
    let unmerged = weights(&model);
    model.merge().unwrap();
    assert!(model.is_merged());
    assert_close(what, &model.forward(input).unwrap(), &adapted, 1e-5);
    model.merge().unwrap();
    assert_close(what, &model.forward(input).unwrap(), &adapted, 1e-5);
    let merged_base = model.to_base().unwrap().forward(input).unwrap();
    model.unmerge().unwrap();
    assert!(!model.is_merged());
    assert_eq!(weights(&model), unmerged, "{what}: unmerge is exact");
    assert_close(what, &merged_base, &adapted, 1e-5);
    let base_again = model.to_base().unwrap().forward(input).unwrap();
    assert_close(what, &base_again, &adapted, 1e-5);

    // The base model did not notice.
    assert_eq!(
        values(&base.forward(input).unwrap()).unwrap(),
        values(&before).unwrap()
    );
    // Without an adapter the layer is the base layer.
    let frozen = base.to_frozen().unwrap();
    assert_close(what, &frozen.forward(input).unwrap(), &before, 1e-6);
    assert!(frozen.trainable_vars().is_empty());
}

#[test]
fn adapted_layers_live_through_merging() {
    for shape in [vec![3, 6], vec![2, 3, 6], vec![2, 1, 3, 6]] {
        check_life("Linear", &linear(F32), &fixed(shape, F32, 5));
    }
    for (groups, dilation) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        let input = fixed((2, 4, 9), F32, 5);
        check_life("Conv1d", &conv1d(groups, dilation), &input);
        let input = fixed((2, 4, 9, 7), F32, 5);
        check_life("Conv2d", &conv2d(groups, dilation), &input);
    }
    let depthwise = Conv2d::new(
        fixed((4, 1, 3, 3), F32, 1),
        None,
        Conv2dConfig {
            groups: 4,
            padding: 1,
            ..Default::default()
        },
    );
    check_life("depthwise", &depthwise, &fixed((2, 4, 5, 5), F32, 5));
    let ids = Tensor::new(&[[0u32, 6, 3], [3, 3, 1]], &Device::Cpu).unwrap();
    check_life("Embedding", &Embedding::new(fixed((7, 5), F32, 1), 5), &ids);
}

#[test]
fn forward_is_the_formula() {
    let base = linear(F32);
    let model = base.to_lora(&LoraConfig::new(2).alpha(3.0)).unwrap();
    fill_adapters(&model);
    let x = fixed((3, 6), F32, 5);
    let adapter = model.adapters().iter().next().unwrap();
    let update = x.matmul(&adapter.a().t().unwrap()).unwrap();
    let update = update.matmul(&adapter.b().t().unwrap()).unwrap();
    let expected = (base.forward(&x).unwrap() + (update * 1.5).unwrap()).unwrap();
    assert_close("linear", &model.forward(&x).unwrap(), &expected, 1e-6);
    assert_eq!(adapter.settings().scaling, 1.5);
    let rslora = base
        .to_lora(&LoraConfig::new(4).alpha(3.0).use_rslora(true))
        .unwrap();
    assert_eq!(
        rslora.adapters().iter().next().unwrap().settings().scaling,
        1.5
    );
}

#[test]
fn layers_stand_in_lists_and_train() {
    let config = LoraConfig::new(2).seed(1);
    let (base1, base2) = (linear(F32), Linear::new(fixed((2, 4), F32, 3), None));
    let fc1 = LoraLinear::new(&base1, &config).unwrap();
    let fc2 = LoraLinear::new(&base2, &config).unwrap();
    let net = seq()
        .add(fc1.clone())
        .add(Activation::Gelu)
        .add(fc2.clone());
    let mut vars = fc1.trainable_vars();
    vars.extend(fc2.trainable_vars());
    let mut optimizer = AdamW::new(
        vars,
        ParamsAdamW {
            lr: 0.05,
            ..Default::default()
        },
    )
    .unwrap();
    let (x, target) = (fixed((5, 6), F32, 4), fixed((5, 2), F32, 6));
    let loss = || candle_nn::loss::mse(&net.forward(&x).unwrap(), &target).unwrap();
    let first = loss().to_scalar::<f32>().unwrap();
    for _ in 0..40 {
        optimizer.backward_step(&loss()).unwrap();
    }
    let last = loss().to_scalar::<f32>().unwrap();
    assert!(last < 0.5 * first, "{first} to {last}");
    let mut merged = fc1.clone();
    merged.merge().unwrap();
    assert_close(
        "merged",
        &merged.forward(&x).unwrap(),
        &fc1.forward(&x).unwrap(),
        1e-5,
    );
}

#[test]
fn bias_modes() {
    let trained = |mode: TrainBias| -> Vec<String> {
        let norm = LayerNorm::new(fixed(4, F32, 1), fixed(4, F32, 2), 1e-5);
        let base = (linear(F32), norm, linear(F32));
        let config = LoraConfig::new(1).target_modules(["0"]).train_bias(mode);
        let model = base.to_lora(&config).unwrap();
        let params = model.named_params().into_iter();
        params
            .filter(|p| p.is_trainable() && p.name() == "bias")
            .map(|p| p.path)
            .collect()
    };
    assert!(trained(TrainBias::None).is_empty());
    assert_eq!(trained(TrainBias::LoraOnly), ["0.bias"]);
    assert_eq!(trained(TrainBias::All), ["0.bias", "1.bias", "2.bias"]);
}

#[test]
fn dropout_acts_in_training_on_the_low_rank_branch() {
    let base = linear(F32);
    let mut model = base.to_lora(&LoraConfig::new(2).dropout(0.5)).unwrap();
    let x = fixed((64, 6), F32, 5);
    lora::ops::seed_dropout(17);
    // B is zero: whatever is dropped, the base result stays.
    assert_close(
        "zero B",
        &model.forward(&x).unwrap(),
        &base.forward(&x).unwrap(),
        1e-6,
    );
    fill_adapters(&model);
    let mut without = base.to_lora(&LoraConfig::new(2)).unwrap();
    lora::transfer_weights(&model, &mut without, &[]).unwrap();
    let expected = without.forward(&x).unwrap();
    assert!(relative_error(&model.forward(&x).unwrap(), &expected).unwrap() > 0.05);
    // The mean over many masks is the result without dropout.
    let mut sum = model.forward(&x).unwrap();
    for _ in 1..2000 {
        sum = (sum + model.forward(&x).unwrap()).unwrap();
    }
    assert_close("mean", &(sum / 2000.0).unwrap(), &expected, 0.05);
    model.eval();
    assert_close("eval", &model.forward(&x).unwrap(), &expected, 1e-6);
    model.train();
    assert!(relative_error(&model.forward(&x).unwrap(), &expected).unwrap() > 0.05);
}

#[test]
fn eval_records_no_graph() {
    let mut model = linear(F32)
        .to_lora(&LoraConfig::new(2).train_bias(TrainBias::All))
        .unwrap();
    let x = fixed((3, 6), F32, 5);
    assert!(model.forward(&x).unwrap().track_op());
    model.eval();
    let y = model.forward(&x).unwrap();
    assert!(!y.track_op());
    let error = model
        .backward(&y.sum_all().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("bias") && error.contains("eval mode"),
        "{error}"
    );
}

#[test]
fn merge_refuses_what_is_not_finite() {
    let config = LoraConfig::new(2).target_modules(["0", "1"]);
    let mut model = vec![linear(F32), linear(F32)].to_lora(&config).unwrap();
    fill_adapters(&model);
    let b = Var::from_tensor(model[1].adapters().iter().next().unwrap().b()).unwrap();
    b.set(&Tensor::full(f32::NAN, (4, 2), &Device::Cpu).unwrap())
        .unwrap();
    let before: Vec<_> = model.named_params().iter().map(|p| p.tensor.id()).collect();
    let error = model.merge().unwrap_err().to_string();
    assert!(
        error.starts_with("1: ") && error.contains("not finite"),
        "{error}"
    );
    assert!(!model.is_merged());
    let after: Vec<_> = model.named_params().iter().map(|p| p.tensor.id()).collect();
    assert_eq!(before, after);
    // An overflow of the weight's dtype counts too.
    let half = Linear::new(Tensor::full(6e4f32, (1, 1), &Device::Cpu).unwrap(), None);
    let mut half = half
        .to_lora(&LoraConfig::new(1).seed(1))
        .unwrap()
        .to_dtype(DType::F16)
        .unwrap();
    for var in half.trainable_vars() {
        var.set(&Tensor::full(200f32, (1, 1), &Device::Cpu).unwrap())
            .unwrap();
    }
    assert!(half.merge().is_err());
}

#[test]
fn a_merged_embedding_keeps_its_own_table() {
    let base = Embedding::new(fixed((7, 5), F32, 1), 5);
    let mut model = base.to_lora(&LoraConfig::new(2)).unwrap();
    fill_adapters(&model);
    model.merge().unwrap();
    assert_eq!(model.unmerged_weight().id(), base.embeddings().id());
}

//! Every layer by hand: initial values, forward, merging, bias training, dtypes, odd inputs.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{
    Activation, AdamW, BatchNorm, Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, GroupNorm,
    LayerNorm, Linear, Module, ModuleT, Optimizer, ParamsAdamW, RmsNorm, seq,
};
use lora::layers::{LoraConv1d, LoraConv2d, LoraEmbedding, LoraLinear};
use lora::{Init, LoraConfig, LoraModel, LoraModule, TrainBias};
use lora_tests::{assert_close, fill_adapters, fixed, relative_error, values};

const F32: DType = DType::F32;

fn linear(dtype: DType) -> Linear {
    Linear::new(fixed((4, 6), dtype, 1), Some(fixed(4, dtype, 2)))
}

fn conv1d(groups: usize, dilation: usize) -> Conv1d {
    let config = Conv1dConfig {
        padding: 2,
        stride: 2,
        dilation,
        groups,
        cudnn_fwd_algo: None,
    };
    Conv1d::new(
        fixed((6, 4 / groups, 3), F32, 1),
        Some(fixed(6, F32, 2)),
        config,
    )
}

fn conv2d(groups: usize, dilation: usize) -> Conv2d {
    let config = Conv2dConfig {
        padding: 1,
        stride: 2,
        dilation,
        groups,
        cudnn_fwd_algo: None,
    };
    Conv2d::new(
        fixed((8, 4 / groups, 3, 3), F32, 1),
        Some(fixed(8, F32, 2)),
        config,
    )
}

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
    for shape in [vec![3, 6], vec![2, 3, 6], vec![2, 1, 3, 6], vec![6]] {
        let input = fixed(shape.clone(), F32, 5);
        if shape.len() > 1 {
            check_life("Linear", &linear(F32), &input);
        }
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
fn initial_values_follow_peft() {
    let base = Linear::new(Tensor::zeros((300, 400), F32, &Device::Cpu).unwrap(), None);
    let ab = |init: Init| {
        let model = base
            .to_lora(&LoraConfig::new(16).init(init).seed(3))
            .unwrap();
        let adapter = model.adapters().iter().next().unwrap().clone();
        (values(adapter.a()).unwrap(), values(adapter.b()).unwrap())
    };
    let std = |v: &[f64]| (v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64).sqrt();
    let largest = |v: &[f64]| v.iter().fold(0f64, |m, v| m.max(v.abs()));

    let (a, b) = ab(Init::Default);
    // U(−1/20, 1/20): standard deviation 1/20/√3.
    assert!((std(&a) / (0.05 / 3f64.sqrt()) - 1.0).abs() < 0.03);
    assert!(largest(&a) <= 0.05 && largest(&a) > 0.0499);
    assert!(b.iter().all(|&b| b == 0.0));
    let (a, b) = ab(Init::Gaussian);
    assert!((std(&a) * 16.0 - 1.0).abs() < 0.03 && b.iter().all(|&b| b == 0.0));
    let (_, b) = ab(Init::Random);
    assert!((std(&b) / (0.25 / 3f64.sqrt()) - 1.0).abs() < 0.03);

    let table = Embedding::new(Tensor::zeros((500, 40), F32, &Device::Cpu).unwrap(), 40);
    let model = table.to_lora(&LoraConfig::new(16).seed(3)).unwrap();
    let adapter = model.adapters().iter().next().unwrap();
    assert!(values(adapter.a()).unwrap().iter().all(|&a| a == 0.0));
    assert!((std(&values(adapter.b()).unwrap()) - 1.0).abs() < 0.1);
    assert_eq!(
        (adapter.a().dims(), adapter.b().dims()),
        (&[16, 500][..], &[40, 16][..])
    );
}

#[test]
fn a_seed_gives_the_same_adapters_and_paths_differ() {
    let layers = vec![linear(F32), linear(F32)];
    let config = LoraConfig::new(2).target_modules(["0", "1"]);
    let a = |config: &LoraConfig| -> Vec<Vec<f64>> {
        let model = layers.to_lora(config).unwrap();
        let layers = model.iter();
        layers
            .map(|l| values(l.adapters().iter().next().unwrap().a()).unwrap())
            .collect()
    };
    let seeded = config.clone().seed(7);
    assert_eq!(a(&seeded), a(&seeded));
    assert_ne!(a(&seeded), a(&config.clone().seed(8)));
    assert_ne!(a(&seeded)[0], a(&seeded)[1]);
    assert_ne!(a(&config), a(&config));
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
fn constructors_take_every_base_layer() {
    let config = LoraConfig::new(2);
    assert_eq!(
        LoraConv1d::new(&conv1d(1, 1), &config)
            .unwrap()
            .trainable_vars()
            .len(),
        2
    );
    assert_eq!(
        LoraConv2d::new(&conv2d(2, 1), &config)
            .unwrap()
            .trainable_vars()
            .len(),
        2
    );
    let table = Embedding::new(fixed((7, 5), F32, 1), 5);
    assert_eq!(
        LoraEmbedding::new(&table, &config)
            .unwrap()
            .trainable_vars()
            .len(),
        2
    );
    let error = LoraConv2d::new(&conv2d(2, 1), &LoraConfig::new(3))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rank 3 is no multiple of the convolution's 2 groups"),
        "{error}"
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
fn half_types_keep_f32_adapters() {
    for dtype in [DType::BF16, DType::F16] {
        let model = linear(dtype).to_lora(&LoraConfig::new(2).seed(1)).unwrap();
        fill_adapters(&model);
        assert!(model.trainable_vars().iter().all(|var| var.dtype() == F32));
        let x = fixed((3, 6), dtype, 5);
        let y = model.forward(&x).unwrap();
        assert_eq!(y.dtype(), dtype);
        let wide = model.to_dtype(F32).unwrap();
        let expected = wide.forward(&x.to_dtype(F32).unwrap()).unwrap();
        assert_close("half", &y, &expected, 1e-2);
        let grads = model.backward(&y.sum_all().unwrap()).unwrap();
        let (a, b) = (&model.trainable_vars()[0], &wide.trainable_vars()[0]);
        let loss = expected.sum_all().unwrap();
        let expected = wide.backward(&loss).unwrap();
        assert_close(
            "gradient",
            grads.get(a).unwrap(),
            expected.get(b).unwrap(),
            2e-2,
        );
        let mut merged = model.clone();
        merged.merge().unwrap();
        assert_close("merged", &merged.forward(&x).unwrap(), &y, 2e-2);
    }
    // f64 stays f64, and so do its adapters.
    let model = linear(DType::F64).to_lora(&LoraConfig::new(2)).unwrap();
    assert!(
        model
            .trainable_vars()
            .iter()
            .all(|var| var.dtype() == DType::F64)
    );
    assert_eq!(
        model
            .forward(&fixed((3, 6), DType::F64, 5))
            .unwrap()
            .dtype(),
        DType::F64
    );
}

#[test]
fn half_convolutions_and_norms_compute() {
    for dtype in [DType::BF16, DType::F16] {
        let conv = conv2d(2, 1);
        let half = conv.to_frozen().unwrap().to_dtype(dtype).unwrap();
        let x = fixed((2, 4, 6, 6), F32, 3);
        let y = half.forward(&x.to_dtype(dtype).unwrap()).unwrap();
        assert_close("conv", &y, &conv.forward(&x).unwrap(), 2e-2);
        let norm = LayerNorm::new(fixed(6, F32, 1), fixed(6, F32, 2), 1e-5);
        let half = norm.to_frozen().unwrap().to_dtype(dtype).unwrap();
        let y = half.forward(&x.to_dtype(dtype).unwrap()).unwrap();
        assert_close("norm", &y, &norm.forward(&x).unwrap(), 2e-2);
    }
}

#[test]
fn empty_and_non_contiguous_inputs() {
    let model = linear(F32).to_lora(&LoraConfig::new(2)).unwrap();
    fill_adapters(&model);
    for shape in [vec![0, 6], vec![2, 0, 6]] {
        let x = Tensor::zeros(shape.clone(), F32, &Device::Cpu).unwrap();
        let y = model.forward(&x).unwrap();
        assert_eq!(y.dims().last(), Some(&4));
    }
    // A transposed view, and one that starts inside of its storage.
    let x = fixed((6, 5), F32, 3).t().unwrap().narrow(0, 1, 3).unwrap();
    let expected = model.forward(&x.contiguous().unwrap()).unwrap();
    assert_close("view", &model.forward(&x).unwrap(), &expected, 1e-6);
    let conv = conv2d(1, 1).to_lora(&LoraConfig::new(2)).unwrap();
    fill_adapters(&conv);
    let x = fixed((7, 5, 9, 4), F32, 3)
        .permute((0, 3, 2, 1))
        .unwrap()
        .narrow(0, 2, 3)
        .unwrap();
    let expected = conv.forward(&x.contiguous().unwrap()).unwrap();
    assert_close("view", &conv.forward(&x).unwrap(), &expected, 1e-6);
    let depthwise = Conv2dConfig {
        groups: 4,
        ..Default::default()
    };
    let depthwise = Conv2d::new(fixed((4, 1, 3, 3), F32, 1), None, depthwise)
        .to_frozen()
        .unwrap();
    let expected = depthwise.forward(&x.contiguous().unwrap()).unwrap();
    assert_close("view", &depthwise.forward(&x).unwrap(), &expected, 1e-6);
    let none = Tensor::zeros((0, 4, 9, 5), F32, &Device::Cpu).unwrap();
    assert_eq!(conv.forward(&none).unwrap().dims(), [0, 8, 5, 3]);
    let ids = Tensor::zeros((2, 0), DType::U32, &Device::Cpu).unwrap();
    let table = Embedding::new(fixed((7, 5), F32, 1), 5)
        .to_lora(&LoraConfig::new(2))
        .unwrap();
    assert_eq!(table.forward(&ids).unwrap().dims(), [2, 0, 5]);
}

#[test]
fn wrong_inputs_are_errors() {
    let model = linear(F32).to_lora(&LoraConfig::new(2)).unwrap();
    let error = model
        .forward(&fixed((3, 5), F32, 1))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("[3, 5]") && error.contains("[4, 6]"),
        "{error}"
    );
    assert!(model.forward(&fixed((3, 6), DType::F64, 1)).is_err());
    let conv = conv2d(1, 1).to_lora(&LoraConfig::new(2)).unwrap();
    assert!(conv.forward(&fixed((2, 3, 6, 6), F32, 1)).is_err());
    let small = conv2d(1, 4).to_lora(&LoraConfig::new(2)).unwrap();
    let error = small
        .forward(&fixed((2, 4, 3, 3), F32, 1))
        .unwrap_err()
        .to_string();
    assert!(error.contains("larger than the padded input"), "{error}");
    let table = Embedding::new(fixed((7, 5), F32, 1), 5)
        .to_lora(&LoraConfig::new(2))
        .unwrap();
    assert!(table.forward(&fixed(3, F32, 1)).is_err());
}

#[test]
fn dropout_acts_in_training_on_the_low_rank_branch() {
    let base = linear(F32);
    let mut model = base.to_lora(&LoraConfig::new(2).dropout(0.5)).unwrap();
    let x = fixed((64, 6), F32, 5);
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
fn norms_compute_what_candle_does_and_come_back() {
    let (weight, bias) = (fixed(6, F32, 1), fixed(6, F32, 2));
    let last = fixed((2, 5, 6), F32, 3);
    let x = fixed((2, 6, 5), F32, 3);

    let base = LayerNorm::new(weight.clone(), bias.clone(), 1e-5);
    let model = base.to_frozen().unwrap();
    assert_close(
        "LayerNorm",
        &model.forward(&last).unwrap(),
        &base.forward(&last).unwrap(),
        1e-6,
    );
    let again = model.to_base().unwrap();
    assert_eq!(
        values(&again.forward(&last).unwrap()).unwrap(),
        values(&base.forward(&last).unwrap()).unwrap()
    );

    let base = RmsNorm::new(weight.clone(), 1e-5);
    let model = base.to_frozen().unwrap();
    assert_close(
        "RmsNorm",
        &model.forward(&last).unwrap(),
        &base.forward(&last).unwrap(),
        1e-6,
    );
    assert_eq!(model.to_base().unwrap().eps(), 1e-5);

    let (mean, variance) = (fixed(6, F32, 4), fixed(6, F32, 5).sqr().unwrap());
    let base = BatchNorm::new_with_momentum(6, mean, variance, weight, bias, 1e-4, 0.3).unwrap();
    let model = base.to_frozen().unwrap();
    let expected = base.forward_t(&x, false).unwrap();
    for train in [false, true] {
        assert_close(
            "BatchNorm",
            &model.forward_t(&x, train).unwrap(),
            &expected,
            1e-5,
        );
    }
    let again = model.to_base().unwrap();
    assert_eq!((again.momentum(), again.eps()), (0.3, 1e-4));
    assert_close(
        "base",
        &again.forward_t(&x, false).unwrap(),
        &expected,
        1e-6,
    );
}

#[test]
fn group_norm_is_read_exactly() {
    for dtype in [F32, DType::F64, DType::BF16, DType::F16] {
        let (weight, bias) = (fixed(6, dtype, 1), fixed(6, dtype, 2));
        for (groups, eps) in [(1, 1e-5), (3, 1e-6), (6, 1e-3)] {
            let base = GroupNorm::new(weight.clone(), bias.clone(), 6, groups, eps).unwrap();
            let model = base.to_frozen().unwrap();
            let what = format!("{dtype:?} {groups}");
            assert_eq!(
                values(model.weight()).unwrap(),
                values(&weight).unwrap(),
                "{what}"
            );
            assert_eq!(
                values(model.bias()).unwrap(),
                values(&bias).unwrap(),
                "{what}"
            );
            assert_eq!(model.weight().dtype(), dtype);
            let x = fixed((2, 6, 3, 2), dtype, 3);
            let expected = base.forward(&x).unwrap();
            let tolerance = if dtype.size_in_bytes() == 2 {
                1e-2
            } else {
                1e-6
            };
            assert_close(&what, &model.forward(&x).unwrap(), &expected, tolerance);
            let again = model.to_base().unwrap().forward(&x).unwrap();
            assert_eq!(values(&again).unwrap(), values(&expected).unwrap());
        }
    }
}

#[test]
fn gradients_of_half_parameters_are_summed_in_f32() {
    // In bf16 a running sum of ones stops at 256.
    let rows = 4096;
    let norm = LayerNorm::new(fixed(2, F32, 1), fixed(2, F32, 2), 1e-5);
    let base = (norm, Embedding::new(fixed((3, 2), F32, 3), 2), linear(F32));
    let config = LoraConfig::new(1)
        .target_modules(["2"])
        .modules_to_save(["0", "1"]);
    let model = base
        .to_lora(&config)
        .unwrap()
        .to_dtype(DType::BF16)
        .unwrap();
    let ids = Tensor::zeros(rows, DType::U32, &Device::Cpu).unwrap();
    let y = model.1.forward(&ids).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    let table = grads.get(model.1.embeddings()).unwrap();
    assert_eq!(values(table).unwrap(), [4096.0, 4096.0, 0.0, 0.0, 0.0, 0.0]);
    let x = fixed((rows, 2), DType::BF16, 4);
    let y = model.0.forward(&x).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    let bias = grads.get(model.0.bias().unwrap()).unwrap();
    assert_eq!(values(bias).unwrap(), [4096.0, 4096.0]);
}

#[test]
fn layer_norm_with_a_bias_and_without_the_mean_comes_back() {
    let tensors = [("weight", fixed(6, F32, 1)), ("bias", fixed(6, F32, 2))];
    let tensors = tensors.map(|(name, tensor)| (name.to_string(), tensor));
    let vb = candle_nn::VarBuilder::from_tensors(tensors.into(), F32, &Device::Cpu);
    let config = candle_nn::LayerNormConfig {
        remove_mean: false,
        ..Default::default()
    };
    let base = candle_nn::layer_norm(6, config, vb).unwrap();
    let model = base.to_frozen().unwrap();
    let x = fixed((2, 6), F32, 3);
    let expected = base.forward(&x).unwrap();
    assert_close("LoRA", &model.forward(&x).unwrap(), &expected, 1e-6);
    assert_close(
        "base",
        &model.to_base().unwrap().forward(&x).unwrap(),
        &expected,
        0.0,
    );
}

#[test]
fn an_embedding_shows_its_own_table_while_merged() {
    let base = Embedding::new(fixed((7, 5), F32, 1), 5);
    let mut model = base.to_lora(&LoraConfig::new(2)).unwrap();
    fill_adapters(&model);
    model.merge().unwrap();
    assert_eq!(model.embeddings().id(), base.embeddings().id());
}

#[test]
fn impossible_layers_and_settings_are_errors() {
    let error = linear(F32)
        .to_lora(&LoraConfig::new(1 << 62))
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not fit into memory"), "{error}");
    let error = linear(F32)
        .to_lora(&LoraConfig::new(usize::MAX))
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not fit into memory"), "{error}");
    for groups in [0, 3] {
        let config = Conv2dConfig {
            groups,
            ..Default::default()
        };
        let conv = Conv2d::new(fixed((8, 4, 3, 3), F32, 1), None, config);
        let error = conv.to_lora(&LoraConfig::new(4)).unwrap_err().to_string();
        assert!(
            error.contains(&format!("has no {groups} groups")),
            "{error}"
        );
    }
    let model = linear(F32).to_lora(&LoraConfig::new(2)).unwrap();
    assert!(
        model
            .to_dtype(DType::U8)
            .unwrap_err()
            .to_string()
            .contains("U8")
    );
    // Padding alone to convolve: the gradient is as empty as the input.
    let config = Conv2dConfig {
        groups: 4,
        padding: 2,
        ..Default::default()
    };
    let weight = fixed((4, 1, 3, 3), F32, 1);
    let conv = Conv2d::new(weight, None, config).to_frozen().unwrap();
    let x = Var::zeros((1, 4, 0, 5), F32, &Device::Cpu).unwrap();
    let y = conv.forward(&x).unwrap();
    assert_eq!(y.dims(), [1, 4, 2, 7]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().dims(), [1, 4, 0, 5]);
}

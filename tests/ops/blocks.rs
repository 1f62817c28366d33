//! Chains of layers as one node, and parts that are computed anew: values and gradients against the
//! same layers one by one and against finite differences in f64.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Activation, LayerNorm, Linear, Module, RmsNorm};
use lora::blocks::Mlp;
use lora::layers::{LoraLayerNorm, LoraLinear, Recompute};
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::{assert_close, check_gradients, fill_adapters, fixed, var};

const F64: DType = DType::F64;

/// The layers of a residual MLP.
#[derive(Clone, Debug, LoraModel)]
struct Parts {
    norm: LayerNorm,
    #[lora(rank)]
    fc1: Linear,
    act: Activation,
    #[lora(rank)]
    fc2: Linear,
    gamma: Tensor,
}

impl Parts {
    fn new(width: usize, hidden: usize, act: Activation, dtype: DType) -> Self {
        let fixed = |shape: &[usize], seed| fixed(shape, dtype, seed);
        Self {
            norm: LayerNorm::new(fixed(&[width], 1), fixed(&[width], 2), 1e-5),
            fc1: Linear::new(fixed(&[hidden, width], 3), Some(fixed(&[hidden], 4))),
            act,
            fc2: Linear::new(fixed(&[width, hidden], 5), Some(fixed(&[width], 6))),
            gamma: fixed(&[width], 7),
        }
    }
}

#[lora::forward]
impl Parts {
    fn one_by_one(&self, xs: &Tensor, shortcut: &Tensor) -> Result<Tensor> {
        let ys = xs.apply(&self.norm)?.apply(&self.fc1)?;
        let ys = ys.apply(&self.act)?.apply(&self.fc2)?;
        shortcut + ys.broadcast_mul(&self.gamma)?
    }

    fn as_one(&self, xs: &Tensor, shortcut: &Tensor, recompute: bool) -> Result<Tensor> {
        Mlp::new(&self.fc1, &self.act, &self.fc2)
            .norm(&self.norm)
            .gamma(Some(&self.gamma))
            .shortcut(shortcut)
            .recompute(recompute)
            .forward(xs)
    }
}

fn lora_parts(width: usize, hidden: usize, act: Activation, config: &LoraConfig) -> LoraParts {
    let model = Parts::new(width, hidden, act, F64).to_lora(config).unwrap();
    fill_adapters(&model);
    model
}

const ACTIVATIONS: [Activation; 4] = [
    Activation::Gelu,
    Activation::GeluPytorchTanh,
    Activation::Relu,
    Activation::Silu,
];

#[test]
fn one_node_has_the_gradients_of_finite_differences() {
    for act in ACTIVATIONS {
        // Few rows and many: the update beside the weight, and added to it.
        for rows in [1, 2, 37] {
            for recompute in [false, true] {
                let model = lora_parts(3, 7, act, &LoraConfig::new(2).alpha(3.0));
                let (x, shortcut) = (var((rows, 3), 11), var((rows, 3), 12));
                let vars = model.trainable_vars();
                let mut named: Vec<_> = vars.iter().map(|var| ("adapter", var)).collect();
                named.extend([("x", &x), ("shortcut", &shortcut)]);
                let what = format!("{act:?}, {rows} rows, recompute {recompute}");
                check_gradients(&what, &named, || model.as_one(&x, &shortcut, recompute));
                let one = model.as_one(&x, &shortcut, recompute).unwrap();
                let each = model.one_by_one(&x, &shortcut).unwrap();
                assert_close(&what, &one, &each, 1e-12);
            }
        }
    }
}

#[test]
fn the_input_may_be_the_shortcut_and_any_part_may_be_missing() {
    let model = lora_parts(3, 5, Activation::Gelu, &LoraConfig::new(1));
    let x = var((2, 2, 3), 11);
    let rms = RmsNorm::new(fixed(3, F64, 1), 1e-5).to_frozen().unwrap();
    let adapters = model.trainable_vars();
    let mut named: Vec<_> = adapters.iter().map(|var| ("adapter", var)).collect();
    named.push(("x", &x));
    let mlp = || Mlp::new(&model.fc1, &model.act, &model.fc2);
    check_gradients("plain", &named, || mlp().forward(&x));
    check_gradients("shortcut", &named, || mlp().shortcut(&x).forward(&x));
    check_gradients("rms", &named, || mlp().norm(&rms).shortcut(&x).forward(&x));
    check_gradients("gamma", &named, || {
        mlp().gamma(Some(&model.gamma)).forward(&x)
    });
}

#[test]
fn parts_that_are_trained_run_layer_by_layer() {
    let config = LoraConfig::new(2)
        .modules_to_save(["norm", "gamma"])
        .train_bias(lora::TrainBias::All);
    let model = lora_parts(3, 5, Activation::Silu, &config);
    let x = var((4, 3), 11);
    let vars = model.trainable_vars();
    assert_eq!(vars.len(), 9);
    let named: Vec<_> = vars.iter().map(|var| ("trained", var)).collect();
    check_gradients("trained parts", &named, || model.as_one(&x, &x, false));
}

#[test]
fn f32_blocks_of_any_size_agree_with_f64() {
    // Widths around those of vectors, and enough rows for several blocks.
    for (rows, width, hidden) in [
        (1, 1, 1),
        (3, 7, 13),
        (5, 17, 16),
        (1000, 33, 130),
        (3001, 96, 384),
    ] {
        let base = Parts::new(width, hidden, Activation::Gelu, F64);
        let config = LoraConfig::new(3).seed(1);
        let exact = base.to_lora(&config).unwrap();
        fill_adapters(&exact);
        let model = exact.to_dtype(DType::F32).unwrap();
        let x = fixed((rows, width), F64, 9);
        let grads_of = |model: &LoraParts, dtype, recompute| {
            let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
            let weights = fixed((rows, width), dtype, 8);
            let y = model.as_one(&x, &x, recompute).unwrap();
            let loss = (&y * weights).unwrap().sum_all().unwrap();
            let grads = model.backward(&loss).unwrap();
            let mut all = vec![y.detach(), grads.get(&x).unwrap().clone()];
            let vars = model.trainable_vars();
            all.extend(vars.iter().map(|var| grads.get(var).unwrap().clone()));
            all
        };
        let expected = grads_of(&exact, F64, false);
        for recompute in [false, true] {
            let actual = grads_of(&model, DType::F32, recompute);
            for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                let what = format!("{rows}x{width}x{hidden}, {index}");
                assert_close(&what, actual, expected, 1e-5);
            }
        }
    }
}

#[test]
fn half_types_agree_with_f64_to_their_precision() {
    let base = Parts::new(33, 70, Activation::Gelu, F64);
    let exact = base.to_lora(&LoraConfig::new(3).seed(1)).unwrap();
    fill_adapters(&exact);
    let x = fixed((50, 33), F64, 9);
    let grads_of = |model: &LoraParts, dtype| {
        let x = x.to_dtype(dtype).unwrap();
        let y = model.as_one(&x, &x, false).unwrap();
        assert_eq!(y.dtype(), dtype);
        let loss = y.to_dtype(F64).unwrap() * fixed((50, 33), F64, 8);
        let grads = model.backward(&loss.unwrap().sum_all().unwrap()).unwrap();
        let mut all = vec![y.detach()];
        let vars = model.trainable_vars();
        all.extend(vars.iter().map(|var| grads.get(var).unwrap().clone()));
        all
    };
    let expected = grads_of(&exact, F64);
    for dtype in [DType::BF16, DType::F16] {
        let model = exact.to_dtype(dtype).unwrap();
        for (actual, expected) in grads_of(&model, dtype).iter().zip(&expected) {
            assert_close(&format!("{dtype:?}"), actual, expected, 2e-2);
        }
    }
}

#[test]
fn an_empty_batch_runs() {
    let model = lora_parts(3, 5, Activation::Gelu, &LoraConfig::new(2));
    let x = Var::zeros((0, 3), F64, &Device::Cpu).unwrap();
    let y = model.as_one(&x, &x, false).unwrap();
    assert_eq!(y.dims(), [0, 3]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    for var in model.trainable_vars() {
        let largest = grads.get(&var).unwrap().abs().unwrap().max_all().unwrap();
        assert_eq!(largest.to_scalar::<f64>().unwrap(), 0.0);
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let model = lora_parts(3, 5, Activation::Gelu, &LoraConfig::new(2));
    let x = fixed((2, 4), F64, 1);
    assert!(model.as_one(&x, &x, false).is_err());
    let (x, shortcut) = (fixed((2, 3), F64, 1), fixed((3, 3), F64, 1));
    assert!(model.as_one(&x, &shortcut, false).is_err());
    let half = fixed((2, 3), DType::F32, 1);
    assert!(model.as_one(&half, &half, false).is_err());
}

#[test]
fn dropout_draws_the_same_mask_in_both_passes() {
    let config = LoraConfig::new(2).dropout(0.4);
    let model = lora_parts(5, 9, Activation::Gelu, &config);
    for rows in [2, 60] {
        let x = var((rows, 5), 3);
        let vars = model.trainable_vars();
        let mut named: Vec<_> = vars.iter().map(|var| ("adapter", var)).collect();
        named.push(("x", &x));
        // Seeded anew, each pass drops the same numbers.
        let again = |f: &dyn Fn() -> Result<Tensor>| {
            ops::seed_dropout(17);
            f()
        };
        check_gradients("block", &named, || again(&|| model.as_one(&x, &x, false)));
        check_gradients("recomputed", &named, || {
            again(&|| model.as_one(&x, &x, true))
        });
        check_gradients("layers", &named, || again(&|| model.one_by_one(&x, &x)));
        let one = again(&|| model.as_one(&x, &x, false)).unwrap();
        let each = again(&|| model.one_by_one(&x, &x)).unwrap();
        assert_close("one and each", &one, &each, 1e-12);
        let other = model.as_one(&x, &x, false).unwrap();
        assert!(lora_tests::relative_error(&one, &other).unwrap() > 1e-6);
    }
}

#[test]
fn dropout_keeps_the_mean_and_drops_its_share() {
    let base = Linear::new(Tensor::zeros((1, 1000), F64, &Device::Cpu).unwrap(), None);
    let layer = LoraLinear::new(&base, &LoraConfig::new(1).dropout(0.25)).unwrap();
    for var in layer.trainable_vars() {
        var.set(&var.ones_like().unwrap()).unwrap();
    }
    let x = Tensor::ones((200, 1000), F64, &Device::Cpu).unwrap();
    // With one seed in twenty some row keeps a number beyond these bounds.
    ops::seed_dropout(123_456_789);
    let y = layer.forward(&x).unwrap().flatten_all().unwrap();
    let y: Vec<f64> = y.to_vec1().unwrap();
    let mean = y.iter().sum::<f64>() / 200.0;
    // 1000 numbers that are 0 or 4/3: the mean's standard deviation is about 1.3.
    assert!((mean - 1000.0).abs() < 8.0, "{mean}");
    let kept = |y: f64| (y / (4.0 / 3.0)).round();
    assert!(y.iter().all(|&y| (700.0..800.0).contains(&kept(y))));
}

#[test]
fn a_checkpoint_has_the_gradients_of_the_part() {
    let model = lora_parts(3, 5, Activation::Gelu, &LoraConfig::new(2).dropout(0.2));
    let (x, factor) = (var((4, 3), 1), var((4, 3), 2));
    let vars = model.trainable_vars();
    let mut named: Vec<_> = vars.iter().map(|var| ("adapter", var)).collect();
    named.extend([("x", &x), ("factor", &factor)]);
    check_gradients("checkpoint", &named, || {
        ops::seed_dropout(5);
        let part = model.clone();
        let xs = (x.as_tensor() * factor.as_tensor())?;
        lora::checkpoint(&xs, move |xs| part.one_by_one(xs, xs))
    });
    // Nested, and on a permuted view.
    check_gradients("nested", &named, || {
        ops::seed_dropout(5);
        let part = model.clone();
        let xs = (x.as_tensor() * factor.as_tensor())?.t()?;
        lora::checkpoint(&xs, move |xs| {
            let part = part.clone();
            lora::checkpoint(&xs.t()?, move |xs| part.one_by_one(xs, xs))?.t()
        })
    });
}

#[test]
fn a_checkpoint_of_something_frozen_is_the_part_itself() {
    let frozen = fixed((2, 3), F64, 1);
    let y = lora::checkpoint(&frozen, |x| x.sqr()).unwrap();
    assert!(!y.track_op());
    let error = lora::checkpoint(&frozen, |x| x.reshape((7, 7)));
    assert!(error.is_err());
    // What it returns as it is, is copied: the input stays usable.
    let x = var((2, 3), 1);
    let y = lora::checkpoint(&x, |x| Ok(x.clone())).unwrap();
    let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let expected = (x.as_tensor() * 2.0).unwrap();
    assert_close("identity", grads.get(&x).unwrap(), &expected, 1e-15);
    assert_close("value", &y, &x, 1e-15);
}

#[derive(Clone, Debug, LoraModel)]
struct Net {
    #[lora(rank)]
    blocks: Vec<Recompute<Linear>>,
    norm: LayerNorm,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.clone();
        for block in &self.blocks {
            xs = block.forward(&xs)?.tanh()?;
        }
        xs.apply(&self.norm)
    }
}

fn net() -> Net {
    let block = |seed| Linear::new(fixed((4, 4), F64, seed), None).into();
    Net {
        blocks: (0..3).map(block).collect(),
        norm: LayerNorm::new(fixed(4, F64, 8), fixed(4, F64, 9), 1e-5),
    }
}

#[test]
fn recompute_is_switched_by_path_and_changes_no_number() {
    let config = LoraConfig::new(2).seed(3);
    let plain = net().to_lora(&config).unwrap();
    let model = net().to_lora(&config.recompute(r"blocks\.[01]")).unwrap();
    let on: Vec<bool> = model.blocks.iter().map(|b| b.recomputes()).collect();
    assert_eq!(on, [true, true, false]);
    let paths =
        |net: &LoraNet| -> Vec<String> { net.named_params().into_iter().map(|p| p.path).collect() };
    assert_eq!(paths(&model), paths(&plain));
    fill_adapters(&model);
    fill_adapters(&plain);
    let x = fixed((5, 4), F64, 4);
    let run = |net: &LoraNet| {
        let loss = net.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = net.backward(&loss).unwrap();
        let vars = net.trainable_vars();
        let grads = vars.iter().map(|var| grads.get(var).unwrap().clone());
        grads.collect::<Vec<_>>()
    };
    for (ours, expected) in run(&model).iter().zip(&run(&plain)) {
        assert_close("gradient", ours, expected, 1e-14);
    }
    let base: Net = model.to_base().unwrap();
    assert_eq!(base.blocks.len(), 3);
}

#[test]
fn a_recompute_pattern_that_matches_nothing_is_an_error() {
    let error = net()
        .to_lora(&LoraConfig::new(2).recompute(["layers"]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("recompute `layers` matches nothing"),
        "{error}"
    );
    assert!(error.contains("blocks.* (Recompute)"), "{error}");
}

#[test]
fn the_gradient_store_holds_variables_only() {
    let model = net().to_lora(&LoraConfig::new(2)).unwrap();
    let loss = model.forward(&fixed((5, 4), F64, 4)).unwrap();
    // A plain tensor that meets a tracked one: candle computes its gradient too.
    let target = fixed((5, 4), F64, 5);
    let own = var((5, 4), 6);
    let loss = ((loss - &target).unwrap() * own.as_tensor()).unwrap();
    let grads = model.backward(&loss.sum_all().unwrap()).unwrap();
    let mut vars = model.trainable_vars();
    // A variable of the user's beside the model keeps its gradient.
    vars.push(own);
    assert_eq!(grads.get_ids().count(), vars.len());
    assert!(vars.iter().all(|var| grads.get(var).is_some()));
}

#[test]
fn a_frozen_norm_makes_a_block_with_its_layers() {
    let norm = LayerNorm::new(fixed(3, F64, 1), fixed(3, F64, 2), 1e-5);
    let frozen: LoraLayerNorm = norm.to_frozen().unwrap();
    let fc = |out: usize, input: usize, seed| Linear::new(fixed((out, input), F64, seed), None);
    let (fc1, fc2) = (fc(4, 3, 3), fc(3, 4, 4));
    let x = fixed((2, 3), F64, 5);
    let y = Mlp::new(&fc1, &Activation::Elu(1.0), &fc2)
        .norm(&frozen)
        .forward(&x);
    let expected = fc2
        .forward(
            &Activation::Elu(1.0)
                .forward(&fc1.forward(&frozen.forward(&x).unwrap()).unwrap())
                .unwrap(),
        )
        .unwrap();
    assert_close("elu", &y.unwrap(), &expected, 1e-13);
}

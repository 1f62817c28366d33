//! Initial values that need data, or change the base, through whole models.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Activation, Conv1d, Conv1dConfig, Linear, Module};
use lora::blocks;
use lora::{Adapted, Init, LoftqConfig, LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fixed, relative_error, values};

/// Two layers; on request as one node.
#[derive(Clone, Debug, LoraModel)]
struct Net {
    fc1: Linear,
    act: Activation,
    fc2: Linear,
    #[lora(skip)]
    fused: bool,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if self.fused {
            return blocks::Mlp::new(&self.fc1, &self.act, &self.fc2).forward(xs);
        }
        xs.apply(&self.fc1)?.apply(&self.act)?.apply(&self.fc2)
    }
}

fn net(fused: bool) -> Net {
    let linear = |out, input, seed| {
        let weight = (fixed((out, input), DType::F32, seed) * 0.5).unwrap();
        Linear::new(weight, Some(fixed(out, DType::F32, seed + 1)))
    };
    Net {
        fc1: linear(10, 8, 1),
        act: Activation::Gelu,
        fc2: linear(6, 10, 3),
        fused,
    }
}

fn config(init: Init) -> LoraConfig {
    LoraConfig::new(3)
        .alpha(4.5)
        .target_modules(["fc1", "fc2"])
        .init(init)
        .seed(1)
}

/// Inputs that vary mostly along the first of eight directions.
fn batch(seed: usize) -> Tensor {
    let strengths = [3f32, 0.03, 0.03, 0.02, 0.02, 0.01, 0.01, 0.01];
    let strengths = Tensor::new(&strengths, &Device::Cpu).unwrap();
    let xs = fixed((32, 8), DType::F32, seed);
    xs.broadcast_mul(&strengths).unwrap()
}

/// Shows three batches to the base and converts it.
fn converted(init: Init, fused: bool) -> LoraNet {
    let (base, config) = (net(fused), config(init));
    let mut seeds = 11..14;
    let calibrated = base.calibrate(&config, |model| match seeds.next() {
        Some(seed) => Ok(Some(model.forward(&batch(seed))?.sqr()?.mean_all()?)),
        None => Ok(None),
    });
    base.to_lora_calibrated(&config, &calibrated.unwrap())
        .unwrap()
}

fn adapters(model: &LoraNet) -> Vec<(String, Tensor)> {
    let params = model.named_params().into_iter();
    let adapters = params.filter(|param| matches!(param.role, lora::Role::Adapter(_)));
    adapters.map(|param| (param.path, param.tensor)).collect()
}

#[test]
fn a_calibrated_model_starts_as_its_base() {
    let x = batch(20);
    for init in [Init::Corda, Init::LoraGa, Init::Eva] {
        for fused in [false, true] {
            let model = converted(init, fused);
            let base = net(fused).to_frozen().unwrap().forward(&x).unwrap();
            let tolerance = if init == Init::Eva { 0.0 } else { 1e-5 };
            let start = model.forward(&x).unwrap();
            assert_close(&format!("{init}"), &start, &base, tolerance);
            let disabled = model.disabled().unwrap().forward(&x).unwrap();
            assert_eq!(values(&disabled).unwrap(), values(&base).unwrap(), "{init}");
            // Not by doing nothing.
            let a = &adapters(&model)[0].1;
            assert!(values(a).unwrap().iter().any(|v| v.abs() > 1e-3), "{init}");
            let b = &adapters(&model)[1].1;
            let is_zero = values(b).unwrap().iter().all(|v| *v == 0.0);
            assert_eq!(is_zero, init == Init::Eva, "{init}");
        }
    }
}

/// The node of two layers shows its layers the same as they are shown one by one.
#[test]
fn a_fused_model_is_calibrated_alike() {
    for init in [Init::Corda, Init::LoraGa, Init::Eva] {
        let (plain, fused) = (converted(init, false), converted(init, true));
        let (plain, fused) = (adapters(&plain), adapters(&fused));
        assert_eq!(plain.len(), fused.len(), "{init}");
        for ((path, plain), (other, fused)) in plain.iter().zip(&fused) {
            assert_eq!(path, other, "{init}");
            if values(plain).unwrap().iter().any(|value| *value != 0.0) {
                // Singular vectors are sensitive to rounding.
                let error = relative_error(fused, plain).unwrap();
                assert!(error < 2e-2, "{init} {path}: {error:e}");
            }
        }
    }
}

#[test]
fn eva_shares_the_ranks_out() {
    let model = converted(Init::Eva, false);
    let ranks: Vec<usize> = model
        .layer_status()
        .iter()
        .map(|layer| {
            assert_eq!(layer.scaling["default"], 1.5, "{}", layer.name);
            let path = format!("{}.lora_A.default.weight", layer.name);
            let a = adapters(&model)
                .into_iter()
                .find(|(known, _)| *known == path);
            let a = a.unwrap().1.detach();
            // Rows are orthonormal.
            let gram = a.matmul(&a.t().unwrap()).unwrap();
            let rank = a.dims()[0];
            let one = Tensor::eye(rank, DType::F32, &Device::Cpu).unwrap();
            assert_close("rows", &gram, &one, 1e-5);
            rank
        })
        .collect();
    assert_eq!(ranks.iter().sum::<usize>(), 6);
    // The first layer's inputs vary in one direction.
    assert!(ranks[0] < ranks[1], "{ranks:?}");
}

/// EVA's first component is the direction in which the inputs vary most.
#[test]
fn eva_finds_the_direction_of_the_inputs() {
    let model = converted(Init::Eva, true);
    let a = adapters(&model)[0].1.detach();
    let first = values(&a.get(0).unwrap()).unwrap();
    let largest = first.iter().map(|v| v.abs()).fold(0.0, f64::max);
    assert!(largest > 0.9 && (first[0].abs() == largest), "{first:?}");
}

#[track_caller]
fn refused<T>(result: lora::Result<T>, parts: &[&str]) {
    let error = result.err().expect("accepted").to_string();
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

#[derive(Clone, Debug, LoraModel)]
struct WithConv {
    conv: Conv1d,
    fc: Linear,
}

#[test]
fn a_convolution_is_no_target() {
    let base = WithConv {
        conv: Conv1d::new(
            fixed((2, 2, 3), DType::F32, 1),
            None,
            Conv1dConfig::default(),
        ),
        fc: Linear::new(fixed((2, 2), DType::F32, 1), None),
    };
    for init in [Init::Corda, Init::Eva, Init::LoraGa] {
        let config = LoraConfig::new(1).init(init).target_modules(["conv", "fc"]);
        refused(
            base.calibrate(&config, |_| Ok(None)),
            &["conv", "Conv1d", &init.to_string()],
        );
    }
    let config = LoraConfig::new(1)
        .init(Init::Loftq)
        .target_modules(["conv"]);
    refused(base.to_lora(&config), &["conv", "Conv1d", "loftq"]);
}

#[test]
fn too_little_data_is_named() {
    for init in [Init::Corda, Init::LoraGa] {
        refused(
            net(false).calibrate(&config(init), |_| Ok(None)),
            &["`fc1` was never seen", "`fc2` was never seen"],
        );
    }
    let mut once = Some(fixed((2, 8), DType::F32, 1));
    let result = net(true).calibrate(&config(Init::Eva), |model| match once.take() {
        Some(xs) => Ok(Some(model.forward(&xs)?)),
        None => Ok(None),
    });
    refused(result, &["`fc1` saw 2 inputs", "`fc2` saw 2 inputs"]);
}

#[test]
fn a_closure_that_never_runs_the_model_is_an_error() {
    for init in [Init::Corda, Init::Eva] {
        // It would never end.
        let result = net(false).calibrate(&config(init), |_| Ok(Some(batch(1))));
        refused(result, &["no target was seen at work"]);
    }
    let other = candle_core::Var::from_tensor(&batch(1)).unwrap();
    let result = net(false).calibrate(&config(Init::LoraGa), |_| Ok(Some(other.sqr()?.sum_all()?)));
    refused(result, &["fc1", "no gradient"]);
}

#[test]
fn data_is_asked_for() {
    for init in [Init::Corda, Init::Eva, Init::LoraGa] {
        refused(
            net(false).to_lora(&config(init)),
            &["fc1", &init.to_string()],
        );
    }
    for init in [Init::Default, Init::Pissa, Init::Loftq] {
        refused(
            net(false).calibrate(&config(init), |_| Ok(None)),
            &["needs no calibration"],
        );
    }
}

#[test]
fn a_calibrated_adapter_is_saved_for_the_original_base() {
    let x = batch(21);
    for init in [Init::Corda, Init::LoraGa, Init::Eva] {
        let mut model = converted(init, true);
        for (index, var) in model.trainable_vars().iter().enumerate() {
            let step = (fixed(var.shape(), DType::F32, index) * 0.1).unwrap();
            let value = var.as_tensor().detach().copy().unwrap();
            var.set(&(value + step).unwrap()).unwrap();
        }
        model.eval();
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(dir.path()).unwrap();
        let loaded = net(true).with_adapter(dir.path()).unwrap();
        let expected = model.forward(&x).unwrap();
        assert_close(
            &format!("{init}"),
            &loaded.forward(&x).unwrap(),
            &expected,
            1e-4,
        );
    }
}

#[test]
fn loftq_makes_up_for_the_quantisation() {
    let weight = fixed((48, 64), DType::F32, 5);
    let base = Linear::new(weight.clone(), None);
    for (quantiser, iterations) in [
        (GgmlDType::Q4_0, 1),
        (GgmlDType::Q4_0, 3),
        (GgmlDType::Q8_0, 1),
    ] {
        let loftq = LoftqConfig::default()
            .quantiser(quantiser)
            .iterations(iterations);
        let config = LoraConfig::new(8)
            .alpha(16.0)
            .init(Init::Loftq)
            .loftq_config(loftq);
        let mut model = base.to_lora(&config).unwrap();
        let quantised = model.unmerged_weight().clone();
        if iterations == 1 {
            let expected = QTensor::quantize(&weight, quantiser).unwrap();
            let expected = expected.dequantize(&Device::Cpu).unwrap();
            assert_eq!(values(&quantised).unwrap(), values(&expected).unwrap());
        }
        let distance = |other: &Tensor| {
            let error = (other - &weight).unwrap().sqr().unwrap().sum_all().unwrap();
            error.to_scalar::<f32>().unwrap()
        };
        model.merge().unwrap();
        let (with, without) = (distance(model.weight()), distance(&quantised));
        assert!(with < 0.9 * without, "{with} {without}");
        // The base stays quantised without its adapter.
        model.unmerge().unwrap();
        let disabled = model.disabled().unwrap();
        assert_eq!(
            values(disabled.weight()).unwrap(),
            values(&quantised).unwrap()
        );
        assert!(values(&quantised).unwrap() != values(&weight).unwrap());
        assert_eq!(model.weight().dim(D::Minus1).unwrap(), 64);
    }
}

#[test]
fn a_loftq_file_quantises_the_base_again() {
    let (base, xs) = (net(false), batch(5));
    let loftq = LoftqConfig::default().iterations(2);
    let config = config(Init::Loftq).loftq_config(loftq);
    // Rows of 32 values, as the quantiser takes them.
    let wide = |out, seed| Linear::new(fixed((out, 32), DType::F32, seed), None);
    let base = Net {
        fc1: wide(32, 1),
        fc2: wide(6, 3),
        ..base
    };
    let model = base.to_lora(&config).unwrap();
    for var in model.trainable_vars() {
        var.set(&(var.as_tensor() * 1.1).unwrap()).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path()).unwrap();
    let again = base.with_adapter(dir.path()).unwrap();
    let xs = fixed((xs.dims()[0], 32), DType::F32, 7);
    let (expected, output) = (model.forward(&xs).unwrap(), again.forward(&xs).unwrap());
    assert_close("output", &output, &expected, 1e-6);
    // The base is not the one that was given.
    let plain = base.forward(&xs).unwrap();
    let disabled = again.disabled().unwrap().forward(&xs).unwrap();
    assert!(relative_error(&disabled, &plain).unwrap() > 1e-3);

    let mut other = base
        .to_lora(&LoraConfig::new(1).target_modules(["fc1"]))
        .unwrap();
    refused(
        other.load_adapter_as("quantised", dir.path()),
        &["loftq", "for good"],
    );
}

#[test]
fn adapters_that_changed_their_base_combine_for_the_base_as_it_was() {
    let (base, xs) = (net(false), batch(5));
    let mut model = base.to_lora(&config(Init::Pissa)).unwrap();
    model.add_adapter("plain", &config(Init::Random)).unwrap();
    for var in model.trainable_vars() {
        var.set(&(var.as_tensor() * 1.1).unwrap()).unwrap();
    }
    let output = |model: &LoraNet, name: &str| {
        let mut model = model.clone();
        model.set_active(&[name]).unwrap();
        let base: Net = model.to_base().unwrap();
        base
    };
    let weights = [("default", 1.0), ("plain", 1.0)];
    let (cat, options) = (lora::Combination::Cat, lora::CombineOptions::default());
    model
        .add_weighted_adapter("both", &weights, cat, &options)
        .unwrap();
    let (one, two, both) = (
        output(&model, "default"),
        output(&model, "plain"),
        output(&model, "both"),
    );
    for (a, b, sum, base) in [
        (
            one.fc1.weight(),
            two.fc1.weight(),
            both.fc1.weight(),
            base.fc1.weight(),
        ),
        (
            one.fc2.weight(),
            two.fc2.weight(),
            both.fc2.weight(),
            base.fc2.weight(),
        ),
    ] {
        let expected = ((a + b).unwrap() - base).unwrap();
        assert_close("weight", sum, &expected, 1e-5);
    }
    let disabled = model.disabled().unwrap().forward(&xs).unwrap();
    assert_close("base", &disabled, &base.forward(&xs).unwrap(), 1e-6);
}

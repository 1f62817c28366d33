//! Norms, which take no adapter but can be trained.

use super::{F32, linear};
use candle_core::{DType, Device, Tensor};
use candle_nn::{BatchNorm, Embedding, GroupNorm, LayerNorm, Module, ModuleT, RmsNorm};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fixed, values};

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

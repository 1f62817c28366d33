//! Inputs of every number format, shape and order of memory, and those that do not fit.

use super::{F32, conv2d, linear};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Embedding, LayerNorm, Module};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fill_adapters, fixed};

/// candle's linear layers take no vector; with an adapter and merged it is a row.
#[test]
fn a_vector_is_a_row() {
    let base = linear(F32);
    let x = fixed(6, F32, 5);
    assert!(base.forward(&x).is_err());
    let mut model = base.to_lora(&LoraConfig::new(4).seed(1)).unwrap();
    fill_adapters(&model);
    let row = model.forward(&x.unsqueeze(0).unwrap()).unwrap();
    let row = row.squeeze(0).unwrap();
    assert_close("adapted", &model.forward(&x).unwrap(), &row, 1e-6);
    model.merge().unwrap();
    assert_close("merged", &model.forward(&x).unwrap(), &row, 1e-5);
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

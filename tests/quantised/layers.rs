//! Results and gradients of one layer.

use super::{blocks, dequantised};
use candle_core::quantized::{GgmlDType, QMatMul};
use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{Embedding, Linear};
use lora::layers::{GGML_TYPES, QEmbedding, QLinear};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, check_gradients, fill_adapters, fixed, values, var};

/// The result and the gradients of the input and of every trained parameter.
fn results<M: LoraModule + Module>(model: &M, xs: &Tensor, leaf: Option<&Var>) -> Vec<Tensor> {
    let ys = model.forward(xs).unwrap();
    let weights = fixed(ys.shape(), DType::F32, 9);
    let loss = (&ys * weights.to_dtype(ys.dtype()).unwrap()).unwrap();
    let loss = loss.to_dtype(DType::F32).unwrap().sum_all().unwrap();
    let grads = model.backward(&loss).unwrap();
    let vars = model.trainable_vars();
    let grads = leaf
        .into_iter()
        .chain(&vars)
        .map(|var| grads.get(var).unwrap().clone());
    [ys].into_iter().chain(grads).collect()
}

/// Compares a layer with its dequantised twin, in everything that training sees.
#[track_caller]
fn compare<Q, F>(what: &str, quantised: &Q, full: &F, xs: &Tensor, leaf: Option<&Var>)
where
    Q: LoraModule + Module,
    F: LoraModule + Module,
{
    fill_adapters(quantised);
    fill_adapters(full);
    let (ours, theirs) = (results(quantised, xs, leaf), results(full, xs, leaf));
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (place, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours.dtype(), theirs.dtype(), "{what}: tensor {place}");
        assert_close(&format!("{what}: tensor {place}"), ours, theirs, 1e-4);
    }
}

#[test]
fn every_type_computes_as_the_dequantised_layer() {
    for dtype in GGML_TYPES {
        let (inputs, outputs) = (2 * dtype.block_size().max(24), 21);
        let weight = blocks(dtype, (outputs, inputs), 5);
        let bias = Some(fixed(outputs, DType::F32, 6));
        let full = Linear::new(dequantised(&weight), bias.clone());
        let layer = QLinear::new(weight, bias).unwrap();
        for rows in [1, 3, 16, 67] {
            let what = format!("{dtype:?}, {rows} rows");
            let xs = Var::from_tensor(&fixed((rows, inputs), DType::F32, rows)).unwrap();
            let config = LoraConfig::new(3).alpha(5.0);
            let (ours, theirs) = (
                layer.to_lora(&config).unwrap(),
                full.to_lora(&config).unwrap(),
            );
            compare(&what, &ours, &theirs, &xs, Some(&xs));
            let (ours, theirs) = (layer.to_frozen().unwrap(), full.to_frozen().unwrap());
            let (ours, theirs) = (ours.forward(&xs).unwrap(), theirs.forward(&xs).unwrap());
            assert_close(&what, &ours, &theirs, 1e-4);
            // The base layer passes the gradient, too.
            let grads = layer
                .forward(&xs)
                .unwrap()
                .sum_all()
                .unwrap()
                .backward()
                .unwrap();
            let expected = dequantised_sum(&full, rows);
            assert_close(&what, grads.get(&xs).unwrap(), &expected, 1e-4);
        }
    }
}

/// The gradient of the sum of a layer's outputs.
fn dequantised_sum(layer: &Linear, rows: usize) -> Tensor {
    let sum = layer.weight().sum_keepdim(0).unwrap();
    sum.repeat((rows, 1)).unwrap()
}

#[test]
fn inputs_of_any_shape_and_layout() {
    let weight = blocks(GgmlDType::Q4_1, (70, 64), 1);
    let full = Linear::new(dequantised(&weight), None);
    let layer = QLinear::new(weight, None).unwrap();
    let config = LoraConfig::new(8);
    let leaf = Var::from_tensor(&fixed((64, 5, 7), DType::F32, 2)).unwrap();
    let views = [
        leaf.t().unwrap().transpose(0, 2).unwrap(),
        leaf.permute((1, 2, 0)).unwrap(),
        leaf.permute((2, 1, 0)).unwrap().narrow(1, 1, 3).unwrap(),
        leaf.flatten(1, 2).unwrap().t().unwrap().get(3).unwrap(),
    ];
    for xs in &views {
        let (ours, theirs) = (
            layer.to_lora(&config).unwrap(),
            full.to_lora(&config).unwrap(),
        );
        compare(
            &format!("{:?}", xs.layout()),
            &ours,
            &theirs,
            xs,
            Some(&leaf),
        );
    }
}

#[test]
fn other_precisions_of_the_input() {
    let weight = blocks(GgmlDType::Q8_0, (33, 64), 1);
    for dtype in [DType::BF16, DType::F16, DType::F64] {
        let bias = fixed(33, dtype, 3);
        let full = Linear::new(
            dequantised(&weight).to_dtype(dtype).unwrap(),
            Some(bias.clone()),
        );
        let layer = QLinear::new(weight.clone(), Some(bias)).unwrap();
        let xs = fixed((40, 64), dtype, 4);
        let config = LoraConfig::new(2);
        let (ours, theirs) = (
            layer.to_lora(&config).unwrap(),
            full.to_lora(&config).unwrap(),
        );
        fill_adapters(&ours);
        fill_adapters(&theirs);
        let (ours, theirs) = (ours.forward(&xs).unwrap(), theirs.forward(&xs).unwrap());
        assert_eq!(ours.dtype(), dtype);
        let tolerance = if dtype == DType::F64 { 1e-12 } else { 2e-2 };
        assert_close(&format!("{dtype:?}"), &ours, &theirs, tolerance);
    }
}

/// Each variant of the update, and more than one.
#[test]
fn every_kind_of_update() {
    let weight = blocks(GgmlDType::Q5_1, (40, 96), 1);
    let bias = Some(fixed(40, DType::F32, 2));
    let full = Linear::new(dequantised(&weight), bias.clone());
    let layer = QLinear::new(weight, bias).unwrap();
    let xs = Var::from_tensor(&fixed((19, 96), DType::F32, 3)).unwrap();
    let configs = [
        ("rsLoRA", LoraConfig::new(4).use_rslora(true)),
        ("DoRA", LoraConfig::new(4).use_dora(true)),
        ("bias on B", LoraConfig::new(4).lora_bias(true)),
        ("bias", LoraConfig::new(4).train_bias(lora::TrainBias::All)),
        ("EVA's rank", LoraConfig::new(12)),
    ];
    for (what, config) in configs {
        let mut ours = layer.to_lora(&config).unwrap();
        let mut theirs = full.to_lora(&config).unwrap();
        compare(what, &ours, &theirs, &xs, Some(&xs));
        ours.add_adapter("other", &LoraConfig::new(2)).unwrap();
        theirs.add_adapter("other", &LoraConfig::new(2)).unwrap();
        ours.set_active(&["default", "other"]).unwrap();
        theirs.set_active(&["default", "other"]).unwrap();
        compare(&format!("{what}, two"), &ours, &theirs, &xs, Some(&xs));
    }
    lora::seed_dropout(1);
    let config = LoraConfig::new(4).dropout(0.5);
    let ours = layer.to_lora(&config).unwrap();
    fill_adapters(&ours);
    let ours = results(&ours, &xs, Some(&xs));
    lora::seed_dropout(1);
    let theirs = full.to_lora(&config).unwrap();
    fill_adapters(&theirs);
    for (ours, theirs) in ours.iter().zip(results(&theirs, &xs, Some(&xs))) {
        assert_close("dropout", ours, &theirs, 1e-4);
    }
}

#[test]
fn embeddings_compute_as_the_dequantised_table() {
    let ids = Tensor::new(&[[0u32, 12, 3], [3, 7, 1]], &Device::Cpu).unwrap();
    for dtype in GGML_TYPES {
        let width = dtype.block_size().max(24);
        let table = blocks(dtype, (13, width), 4);
        let full = Embedding::new(dequantised(&table), width);
        let layer = QEmbedding::new(table).unwrap();
        let base = layer.forward(&ids).unwrap();
        assert_eq!(
            values(&base).unwrap(),
            values(&full.forward(&ids).unwrap()).unwrap()
        );
        for config in [LoraConfig::new(2), LoraConfig::new(2).use_dora(true)] {
            let (ours, theirs) = (
                layer.to_lora(&config).unwrap(),
                full.to_lora(&config).unwrap(),
            );
            compare(&format!("{dtype:?}"), &ours, &theirs, &ids, None);
        }
    }
    let table = blocks(GgmlDType::Q4_0, (13, 32), 4);
    let out = Tensor::new(&[13u32], &Device::Cpu).unwrap();
    assert!(QEmbedding::new(table).unwrap().forward(&out).is_err());
}

/// In eval mode a few rows are candle's, to the last bit; in training never.
#[test]
fn few_rows_are_candles_in_eval_mode() {
    let weight = blocks(GgmlDType::Q4K, (24, 512), 1);
    let candles = QMatMul::from_arc(weight.clone()).unwrap();
    let full = Linear::new(dequantised(&weight), None);
    let mut model = candles.to_lora(&LoraConfig::new(2)).unwrap();
    for (rows, is_candles) in [(1, true), (15, true), (16, false)] {
        let xs = fixed((rows, 512), DType::F32, 2);
        let (rounded, exact) = (candles.forward(&xs).unwrap(), full.forward(&xs).unwrap());
        model.train();
        assert_close("training", &model.forward(&xs).unwrap(), &exact, 1e-4);
        model.eval();
        let ys = model.forward(&xs).unwrap();
        match is_candles {
            true => assert_eq!(values(&ys).unwrap(), values(&rounded).unwrap()),
            false => assert_close("eval", &ys, &exact, 1e-4),
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    for (dtype, rows) in [(GgmlDType::Q4_0, 3), (GgmlDType::Q5_1, 18)] {
        let weight = blocks(dtype, (5, 32), 1);
        let bias = fixed(5, DType::F64, 2);
        for config in [LoraConfig::new(2), LoraConfig::new(2).lora_bias(true)] {
            let layer = QLinear::new(weight.clone(), Some(bias.clone())).unwrap();
            let model = layer.to_lora(&config).unwrap();
            fill_adapters(&model);
            let xs = var((rows, 32), 3);
            let trained = model.trainable_vars();
            let names = ["A", "B", "bias on B"];
            let mut vars: Vec<(&str, &Var)> = names.into_iter().zip(&trained).collect();
            vars.push(("xs", &xs));
            check_gradients(&format!("{dtype:?}"), &vars, || model.forward(&xs));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let weight = blocks(GgmlDType::Q8_0, (3, 32), 1);
    let error = QLinear::new(weight.clone(), Some(fixed(4, DType::F32, 1))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer: a bias of shape [4] does not fit 3 outputs"
    );
    let layer = QLinear::new(weight, None)
        .unwrap()
        .to_lora(&LoraConfig::new(1));
    let layer = layer.unwrap();
    for xs in [
        fixed((2, 31), DType::F32, 1),
        Tensor::zeros((2, 32), DType::U8, &Device::Cpu).unwrap(),
    ] {
        let error = layer.forward(&xs).unwrap_err().to_string();
        let text = format!(
            "linear: the input must be floats, and its last dimension 32 for a weight of shape [3, 32]; \
             it is {:?} of {:?}",
            xs.dims(),
            xs.dtype()
        );
        assert!(error.starts_with(&text), "{error}");
    }
}
